"""End to end on each storage: enqueue, drain, depth, pickup, start, size."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from bench.node import PAYLOAD, cpu_seconds, drain_rate, fill, free_port, node, pause, program, until
from gotask import GoTask, backends
from gotask.backends import Backend
from gotask.model import NewJob, Queue
from gotask.states import State

DRAIN_BUDGET = {"memory": ">= 80,000", "sqlite": ">= 60,000", "redis": ">= 30,000", "postgres": ">= 15,000"}
PICKUP_BUDGET = {"memory": "<= 0.5", "sqlite": "<= 2", "redis": "<= 2", "postgres": "<= 2"}
JOBS = int(os.environ.get("BENCH_JOBS", "200000"))
DEEP = int(os.environ.get("BENCH_DEEP", "1000000"))


def scheme(storage: str) -> str:
    return storage.partition(":")[0]


def test_drain(benchmark, figure, storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node that is up, and a paused queue full of no-op jobs
    rates = []
    with node(storage, tmp_path):

        def setup() -> None:
            pause(backend, True)
            fill(backend, JOBS)

        # When the queue is resumed
        benchmark.pedantic(lambda: rates.append(drain_rate(backend, JOBS)), setup=setup, rounds=3)
    # Then they end at this rate
    figure(f"drain, {scheme(storage)}", sorted(rates)[1], "jobs/s", DRAIN_BUDGET[scheme(storage)])


def test_enqueue(benchmark, figure, storage: str) -> None:
    from bench import tasks

    app = GoTask(storage)
    noop = app.task(tasks.noop.function)
    costs = []

    def one_by_one() -> None:
        begun = time.perf_counter()
        for _ in range(1000):
            noop.enqueue(text="x" * 88)
        costs.append(1000 / (time.perf_counter() - begun))

    with app:
        benchmark.pedantic(one_by_one, rounds=5)
        begun = time.perf_counter()
        app.enqueue_many({"type": "noop", "payload": {"text": "x" * 88}} for _ in range(50_000))
        took = time.perf_counter() - begun
    figure(f"enqueue one by one, {scheme(storage)}", sorted(costs)[2], "jobs/s", "")
    figure(f"enqueue in batches, {scheme(storage)}", 50_000 / took, "jobs/s", "")


def produce(storage: str, stop, waits) -> None:
    """Another process: enqueue one job after another, and note how long each took."""
    backend = backends.open(storage)
    while not stop.is_set():
        begun = time.perf_counter()
        backend.enqueue_many([NewJob(type="noop", payload=PAYLOAD, queue="other")])
        waits.append(time.perf_counter() - begun)
        time.sleep(0.002)
    backend.close()


def test_producer_beside_a_draining_node(benchmark, figure, storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node that drains as fast as it can
    context = get_context("spawn")
    with context.Manager() as manager, node(storage, tmp_path, "-Q", "default"):
        stop, waits = manager.Event(), manager.list()
        pause(backend, True)
        fill(backend, JOBS)
        producer = context.Process(target=produce, args=(storage, stop, waits))
        producer.start()
        until("the producer has begun", lambda: len(waits) > 0)
        del waits[:]
        # When another process enqueues one by one meanwhile
        benchmark.pedantic(lambda: drain_rate(backend, JOBS), rounds=1)
        stop.set()
        producer.join()
        # Then this is how long it waits at the worst
        figure(f"producer beside a draining node, {scheme(storage)}, p99", np.percentile(list(waits), 99) * 1e3, "ms", "<= 25")


def test_pickup(benchmark, figure, storage: str, tmp_path: Path) -> None:
    from bench import tasks

    app = GoTask(storage)
    pickup = app.task(tasks.pickup.function)
    found: list[tuple[float, float]] = []
    with app, node(storage, tmp_path):

        def one() -> None:
            asked = time.monotonic()
            job = pickup.enqueue()
            answered = time.monotonic()
            ran = job.result(timeout=5)
            found.append((ran - asked, ran - answered))
            time.sleep(0.005)

        for _ in range(20):
            one()
        found.clear()
        benchmark.pedantic(one, rounds=500)
    asked, answered = (np.percentile(seconds, [50, 99]) * 1e3 for seconds in zip(*found, strict=True))
    figure(f"pickup, idle node, {scheme(storage)}, p50", asked[0], "ms", "")
    figure(f"pickup, idle node, {scheme(storage)}, p99", asked[1], "ms", PICKUP_BUDGET[scheme(storage)])
    figure(f"pickup after enqueue has answered, {scheme(storage)}, p50", answered[0], "ms", "")


def test_depth(benchmark, figure, storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given the rate with few jobs queued
    few = 10_000
    with node(storage, tmp_path):
        shallow = []
        for _ in range(7):
            pause(backend, True)
            fill(backend, few)
            shallow.append(drain_rate(backend, few))
        # When a million is queued
        pause(backend, True)
        fill(backend, DEEP)
        deep = []
        benchmark.pedantic(lambda: deep.append(drain_rate(backend, DEEP)), rounds=1)
    # Then it goes on at this share of it
    figure(f"depth, {scheme(storage)}: rate at {DEEP:,} to that at 10,000", 100 * deep[0] / sorted(shallow)[3], "%", ">= 80")


def test_start_to_first_job(benchmark, figure, storage: str, backend: Backend, tmp_path: Path) -> None:
    took = []

    def start() -> None:
        begun = time.perf_counter()
        fill(backend, 1)
        count = backend.counts().get(("default", State.SUCCESS), 0)
        with program("gotask.cli.worker", storage, tmp_path, "-A", "bench.tasks:app", "--health-port=0"):
            until("the job has ended", lambda: backend.counts().get(("default", State.SUCCESS), 0) > count)
            took.append(time.perf_counter() - begun)

    benchmark.pedantic(start, rounds=5)
    figure(f"node start to first job, {scheme(storage)}", sorted(took)[2], "s", "<= 1")


def test_size_of_a_queued_job(benchmark, figure, tmp_path: Path) -> None:
    # Given a database with many queued jobs of 100 bytes of payload, checkpointed
    path = tmp_path / "jobs.db"
    backend = backends.open(f"sqlite:///{path}")
    backend.put(Queue(name="default"))
    benchmark.pedantic(lambda: fill(backend, 200_000), rounds=1)
    backend.close()
    # Then each takes this much
    figure("disk per queued job, sqlite", path.stat().st_size / 200_000, "bytes", "<= 400")


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_idle(benchmark, figure, storage: str, tmp_path: Path) -> None:
    seconds = 20.0
    up = ("up", f"-http-port={free_port()}", "--metrics-port=0", "--health-port=0")
    with program("gotask.cli.gotask", storage, tmp_path, *up) as process:
        time.sleep(5)
        before = cpu_seconds(process.pid)
        benchmark.pedantic(lambda: time.sleep(seconds), rounds=1)
        figure("idle, node and server together", 100 * (cpu_seconds(process.pid) - before) / seconds, "% of a core", "<= 1")
