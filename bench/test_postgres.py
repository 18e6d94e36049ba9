"""PostgreSQL, each commit on the disk: drain beside the bare limit, enqueue, pickup with and without NOTIFY, idle nodes."""

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from bench.bare import Bare
from bench.fleet import IdleNode, live
from bench.node import PAYLOAD, cpu_seconds, drain_rate, node, pause
from bench.postgres import BATCH, load, transactions
from gotask import GoTask, backends
from gotask.backends import Backend
from gotask.model import NewJob
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres

JOBS = int(os.environ.get("BENCH_JOBS", "200000"))
ROUNDS = 5
PRODUCERS = 8
POLL_S = 0.25  #: seconds between the looks of a node that is told nothing
NODES = 50
IDLE_S = float(os.environ.get("BENCH_IDLE_S", "30"))

pytestmark = pytest.mark.parametrize("storage", ["postgres"], indirect=True)


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture
def bare(server: Postgres) -> Iterator[Bare]:
    made = Bare(server.url)
    yield made
    made.close()


def test_drain_beside_the_bare_limit(benchmark, figure, storage: str, backend: Backend, bare: Bare, tmp_path: Path) -> None:
    rates: list[float] = []
    limits: list[float] = []

    # Given a paused queue full of no-op jobs, and as many rows for bare SQL
    def setup() -> None:
        bare.fill(bytes(PAYLOAD), JOBS)
        limits.append(bare.drain(BATCH))
        pause(backend, True)
        load(backend, JOBS)

    with node(storage, tmp_path):
        # When a node that is up drains them, and one client the rows, by turns
        benchmark.pedantic(lambda: rates.append(drain_rate(backend, JOBS)), setup=setup, rounds=ROUNDS)
    # Then these are their rates
    figure("drain, postgres, durable, with history", median(rates), "jobs/s", ">= 15,000")
    figure("bare limit: one client, minimal tables, with history", median(limits), "jobs/s", "")
    figure("drain, postgres, to the bare limit", 100 * median(rates) / median(limits), "%", "")


def one_by_one(backend: Backend, count: int) -> None:
    new = NewJob(type="noop", payload=PAYLOAD)
    for _ in range(count):
        backend.enqueue_many([new])


def produce(url: str, count: int, gate) -> None:
    """Another process: connect, wait for the others, and enqueue one job after another."""
    backend = backends.open(url)
    one_by_one(backend, 10)
    gate.wait()
    one_by_one(backend, count)
    gate.wait()
    backend.close()


@pytest.mark.usefixtures("storage")
def test_enqueue(benchmark, figure, backend: Backend, bare: Bare) -> None:
    # Given one process that has its jobs ready
    some = max(100, JOBS // 100)

    def in_batches(size: int) -> float:
        calls = max(1, JOBS // 10 // size)
        batch = [NewJob(type="noop", payload=PAYLOAD) for _ in range(size)]
        begun = time.perf_counter()
        for _ in range(calls):
            backend.enqueue_many(batch)
        return calls * size / (time.perf_counter() - begun)

    def alone() -> float:
        begun = time.perf_counter()
        one_by_one(backend, some)
        return some / (time.perf_counter() - begun)

    def limit() -> float:
        begun = time.perf_counter()
        for _ in range(some):
            bare.enqueue(bytes(PAYLOAD))
        return some / (time.perf_counter() - begun)

    one_by_one(backend, 100)
    rates: dict[str, list[float]] = {"1000": [], "10,000": [], "alone": [], "bare": []}

    # When it hands them in
    def each() -> None:
        rates["1000"].append(in_batches(1000))
        rates["10,000"].append(in_batches(10_000))
        rates["alone"].append(alone())
        rates["bare"].append(limit())

    benchmark.pedantic(each, rounds=ROUNDS)
    # Then that many a second are accepted
    figure("enqueue in batches of 1000, postgres", median(rates["1000"]), "jobs/s", ">= 40,000")
    figure("enqueue in batches of 10,000, postgres", median(rates["10,000"]), "jobs/s", "")
    figure("enqueue one by one, one producer, postgres", median(rates["alone"]), "jobs/s", ">= 2,500")
    figure("bare limit: one row, one commit, one client", median(rates["bare"]), "jobs/s", "")


def test_enqueue_from_many_producers(benchmark, figure, storage: str, backend: Backend) -> None:
    some = max(50, JOBS // 200)
    threads: list[float] = []
    processes: list[float] = []

    def from_threads() -> None:
        begun = time.perf_counter()
        with ThreadPoolExecutor(PRODUCERS) as pool:
            list(pool.map(lambda _: one_by_one(backend, some), range(PRODUCERS)))
        threads.append(PRODUCERS * some / (time.perf_counter() - begun))

    def from_processes() -> None:
        context = get_context("spawn")
        gate = context.Barrier(PRODUCERS + 1)
        others = [context.Process(target=produce, args=(storage, some, gate)) for _ in range(PRODUCERS)]
        for each in others:
            each.start()
        gate.wait(60)
        begun = time.perf_counter()
        gate.wait(120)
        processes.append(PRODUCERS * some / (time.perf_counter() - begun))
        for each in others:
            each.join()

    # When eight threads of one process, and eight processes, enqueue one by one at once
    benchmark.pedantic(lambda: (from_threads(), from_processes()), rounds=ROUNDS)
    # Then commits that come together share their way to the disk
    figure(f"enqueue one by one, {PRODUCERS} threads, postgres", median(threads), "jobs/s", "")
    figure(f"enqueue one by one, {PRODUCERS} processes, postgres", median(processes), "jobs/s", "")


@pytest.mark.parametrize(
    ("notify", "pauses", "rounds", "budget"),
    [
        pytest.param("on", (0.06, 0.1), 300, "<= 2", id="told"),
        # notifications of one queue come at most so often from one process: at this pace most jobs wait for the next
        pytest.param("on", (0.002, 0.018), 300, "", id="told, at a pace"),
        # by chance, since the producer looks for the result at the same pace as the node, and the two would fall in step
        pytest.param("off", (0.0, POLL_S), 100, f"<= {POLL_S * 1e3 + 10:g}", id="not told"),
    ],
)
def test_pickup(
    benchmark, figure, request, storage: str, tmp_path: Path, notify: str, pauses, rounds: int, budget: str
) -> None:
    from bench import tasks

    # Given an idle node, told by NOTIFY, or one that looks from time to time
    url = storage if notify == "on" else f"{storage}&notify=off&poll={POLL_S}"
    app = GoTask(url)
    pickup = app.task(tasks.pickup.function)
    found: list[tuple[float, float]] = []

    def one() -> None:
        asked = time.monotonic()
        job = pickup.enqueue()
        answered = time.monotonic()
        ran = job.result(timeout=10)
        found.append((ran - asked, ran - answered))
        time.sleep(random.uniform(*pauses))

    with app, node(url, tmp_path):
        for _ in range(5):
            one()
        found.clear()
        # When jobs come one at a time, with a pause after each
        benchmark.pedantic(one, rounds=min(rounds, max(10, JOBS // 100)))
    # Then they start so long after
    asked, answered = (np.percentile(seconds, [50, 99]) * 1e3 for seconds in zip(*found, strict=True))
    how = request.node.callspec.id.removesuffix("-postgres")
    figure(f"pickup, postgres, {how}, p50", asked[0], "ms", "")
    figure(f"pickup, postgres, {how}, p99", asked[1], "ms", budget)
    figure(f"pickup after enqueue has answered, postgres, {how}, p50", answered[0], "ms", "")
    figure(f"pickup after enqueue has answered, postgres, {how}, p99", answered[1], "ms", "")


@pytest.mark.usefixtures("storage")
def test_pickup_at_the_bare_limit(benchmark, figure, bare: Bare) -> None:
    rounds = min(300, max(10, JOBS // 100))
    # When rows are inserted one at a time, each told by NOTIFY to a thread that takes it with one UPDATE
    pauses = [random.uniform(0.06, 0.1) for _ in range(rounds)]
    seconds = benchmark.pedantic(bare.pickups, args=(pauses, bytes(PAYLOAD)), rounds=1)
    # Then they are taken so long after
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    figure("bare limit of a pickup: a row, NOTIFY, one UPDATE, p50", p50, "ms", "")
    figure("bare limit of a pickup: a row, NOTIFY, one UPDATE, p99", p99, "ms", "")


def test_an_idle_node(benchmark, figure, storage: str, server: Postgres, tmp_path: Path) -> None:
    # Given a node that has nothing to do
    with node(storage, tmp_path) as process:
        time.sleep(5)
        # When nothing happens for a while
        cpu, made, begun = cpu_seconds(process.pid), transactions(server), time.monotonic()
        benchmark.pedantic(lambda: time.sleep(IDLE_S), rounds=1)
        took = time.monotonic() - begun
        # Then it and the server have done this much; the figure includes what the server does by itself
        figure("idle node, postgres: transactions", (transactions(server) - made) * 60 / took, "a minute", "<= 60")
        figure("idle node, postgres: its CPU", 100 * (cpu_seconds(process.pid) - cpu) / took, "% of a core", "<= 1")


def test_many_idle_nodes(benchmark, figure, storage: str, server: Postgres) -> None:
    # Given many nodes of ten slots, each with its connections
    nodes = [IdleNode(storage, number, 10) for number in range(NODES)]
    live(nodes, min(5.0, IDLE_S))
    # that of the question counts too, and is not theirs
    links = server.command("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL")[0][0] - 1
    # When nothing happens for a while
    before, made = cpu_seconds(server.pid), transactions(server)
    calls = benchmark.pedantic(lambda: live(nodes, IDLE_S), rounds=1)
    # Then PostgreSQL is busy for this share of the time
    busy, ended = cpu_seconds(server.pid) - before, transactions(server) - made
    figure(f"postgres under {NODES} idle nodes", 100 * busy / IDLE_S, "% of a core", "")
    figure("postgres: calls of an idle node", calls / NODES * 60 / IDLE_S, "a minute", "<= 60")
    figure("postgres: transactions of an idle node", ended / NODES * 60 / IDLE_S, "a minute", "")
    figure("postgres: connections of an idle node", links / NODES, "", "")
    for each in nodes:
        each.close()
