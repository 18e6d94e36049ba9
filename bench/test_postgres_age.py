"""PostgreSQL as it ages: millions queued, millions gone through, and a transaction elsewhere that keeps the dead from leaving.

Each has a server of its own. The default sizes fit into minutes; the real ones are asked for by the environment, such as
`make bench BENCH_BLOAT=10000000 BENCH_PINNED_S=600 ARGS="-k test_postgres_age"`.
"""

import os
import time
from pathlib import Path
from statistics import median

import psycopg

from bench.node import drain_rate, ended, node, pause, until
from bench.postgres import LOAD, SETTINGS, lease_and_settle, load, sizes, transactions
from gotask import backends
from gotask.backends import Backend
from gotask.states import State
from tests.servers.fixtures import StartPostgres

FEW = 10_000
DEPTH = int(os.environ.get("BENCH_DEPTH", "5000000"))
TAKEN = int(os.environ.get("BENCH_JOBS", "200000"))  #: jobs over which a rate is measured
BLOAT = int(os.environ.get("BENCH_BLOAT", "200000"))  #: jobs that go through
BACKLOG = int(os.environ.get("BENCH_BACKLOG", "500000"))  #: jobs that wait meanwhile
PINNED_S = float(os.environ.get("BENCH_PINNED_S", "60"))
RATE = 500  #: jobs per second beside the long transaction
BEAT_S = 0.02  #: seconds between two of its batches
DRAINS = 5
TICK_S = 1.0  #: seconds between two ticks, as a busy node makes them


def waiting(backend: Backend) -> int:
    return backend.counts().get(("default", State.PENDING), 0)


def test_depth(benchmark, figure, start_postgres: StartPostgres) -> None:
    server = start_postgres(**SETTINGS)
    backend = backends.open(f"{server.url}?schema=deep")
    few = min(FEW, TAKEN)
    load(backend, few)
    lease_and_settle(backend, few)

    # Given the rate with few jobs queued
    def shallow() -> float:
        load(backend, few)
        return lease_and_settle(backend, few)

    server.command("CHECKPOINT")
    low = [shallow() for _ in range(TAKEN // few)]
    # When there are millions, and what their fill had to write is written
    begun = time.perf_counter()
    load(backend, DEPTH)
    figure(f"enqueue in batches of {LOAD:,} up to {DEPTH:,}, postgres", DEPTH / (time.perf_counter() - begun), "jobs/s", "")
    server.command("CHECKPOINT")
    deep: list[float] = []
    benchmark.pedantic(lambda: deep.append(lease_and_settle(backend, few)), rounds=TAKEN // few)
    # Then it goes on at this share of it
    figure(f"lease and settle, {few:,} queued, postgres", median(low), "jobs/s", "")
    figure(f"lease and settle, {DEPTH:,} queued, postgres", median(deep), "jobs/s", "")
    figure(f"depth, postgres: rate at {DEPTH:,} to that at {few:,}", 100 * median(deep) / median(low), "%", ">= 80")
    total = sum(sum(each.values()) for each in sizes(server, "deep").values())
    figure("disk per queued job, postgres, tables and indexes", total / (DEPTH - TAKEN), "bytes", "")
    backend.close()


def test_bloat(benchmark, figure, start_postgres: StartPostgres) -> None:
    server = start_postgres(**SETTINGS)
    used = backends.open(f"{server.url}?schema=used")
    load(used, BACKLOG)
    rates: list[float] = []

    def pass_through() -> None:
        """As many leave as come, as fast as one process can."""
        step = min(LOAD, BLOAT)
        ticked = time.monotonic()
        for _ in range(BLOAT // step):
            load(used, step)
            rates.append(lease_and_settle(used, step))
            if time.monotonic() - ticked > TICK_S:
                used.tick()
                ticked = time.monotonic()

    # Given a store through which many jobs have gone, and a fresh one with the same backlog
    benchmark.pedantic(pass_through, rounds=1)
    after = sizes(server, "used")
    assert waiting(used) == BACKLOG
    used.close()
    fresh = backends.open(f"{server.url}?schema=fresh")
    load(fresh, BACKLOG)
    before = sizes(server, "fresh")
    fresh.close()
    # Then it is hardly larger
    for kind in ("tables", "indexes"):
        ratio = sum(after[kind].values()) / sum(before[kind].values())
        figure(f"bloat, postgres: {kind} after {BLOAT:,} jobs, {BACKLOG:,} queued, to fresh", ratio, "times", "<= 2")
        for name, size in sorted(after[kind].items(), key=lambda each: -each[1])[:3]:
            figure(f"bloat, postgres: {name}, from {before[kind].get(name, 0) / 1e6:,.1f} MB", size / 1e6, "MB", "")
    tenth = max(1, len(rates) // 10)
    figure(
        "bloat, postgres: the last tenth's rate to the first's", 100 * median(rates[-tenth:]) / median(rates[:tenth]), "%", ""
    )


def test_a_pinned_xmin(benchmark, figure, start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node on a server, and the rate at which it drains
    server = start_postgres(**SETTINGS)
    url = f"{server.url}?schema=pinned"
    backend = backends.open(url)
    jobs = TAKEN // 4

    def drain() -> float:
        pause(backend, True)
        load(backend, jobs)
        return drain_rate(backend, jobs)

    with node(url, tmp_path), psycopg.connect(server.url) as elsewhere:
        drain()
        before = [drain() for _ in range(DRAINS)]
        # When a transaction elsewhere keeps its view of the database while jobs come and go
        elsewhere.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        elsewhere.execute("SELECT txid_current()")
        made, first = transactions(server), ended(backend)
        sent = benchmark.pedantic(lambda: trickle(backend, PINNED_S), rounds=1)
        until("the node has kept up", lambda: ended(backend) >= first + sent, 30, 0.1)
        made = transactions(server) - made
        # Then draining costs hardly more, while it is still open
        after = [drain() for _ in range(DRAINS)]
        elsewhere.rollback()
        free = [drain() for _ in range(DRAINS)]
    cost = 100 * (1 - median(after) / median(before))
    figure("drain before a long transaction, postgres", median(before), "jobs/s", "")
    figure(f"drain after {PINNED_S:g} s of {RATE}/s beside it, postgres", median(after), "jobs/s", "")
    figure("a long transaction elsewhere, postgres: what it costs a drain", cost, "%", "<= 20")
    figure("drain once it has ended, postgres", median(free), "jobs/s", "")
    figure("transactions per job beside it, postgres", made / sent, "", "")
    backend.close()


def trickle(backend: Backend, seconds: float) -> int:
    """Enqueue RATE jobs per second in small batches; how many."""
    begun, beats = time.monotonic(), 0
    while beats * BEAT_S < seconds:
        load(backend, int(RATE * BEAT_S))
        beats += 1
        time.sleep(max(0.0, begun + beats * BEAT_S - time.monotonic()))
    return beats * int(RATE * BEAT_S)
