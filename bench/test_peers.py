"""The peers that need no server, with the same no-op and the same 100 bytes, in the same run."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TEXT = "x" * 88
JOBS = 20_000


def noop(text: str) -> None:
    pass


def rate(seconds: float, count: int = JOBS) -> float:
    return count / seconds


def test_process_pool_executor(benchmark, figure) -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        pool.submit(noop, TEXT).result()

        def run() -> None:
            for future in [pool.submit(noop, TEXT) for _ in range(JOBS)]:
                future.result()

        benchmark.pedantic(run, rounds=3)
    figure("peer: ProcessPoolExecutor.submit (nothing stored)", rate(benchmark.stats.stats.median), "jobs/s", "")


def test_multiprocessing_pool(benchmark, figure) -> None:
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.apply(noop, (TEXT,))

        def run() -> None:
            for result in [pool.apply_async(noop, (TEXT,)) for _ in range(JOBS)]:
                result.get()

        benchmark.pedantic(run, rounds=3)
    figure("peer: multiprocessing.Pool.apply_async (nothing stored)", rate(benchmark.stats.stats.median), "jobs/s", "")


def test_huey_on_sqlite(benchmark, figure, tmp_path: Path) -> None:
    # Given Huey's consumer with as many processes as there are CPUs, on its SQLite storage with fsync as it comes
    env = {**os.environ, "HUEY_DB": str(tmp_path / "huey.db"), "PYTHONPATH": os.getcwd()}
    os.environ["HUEY_DB"] = env["HUEY_DB"]
    from bench.peer_huey import huey
    from bench.peer_huey import noop as huey_noop

    count = 5000
    for _ in range(count):
        huey_noop(TEXT)

    def run() -> None:
        command = [
            sys.executable,
            "-m",
            "huey.bin.huey_consumer",
            "bench.peer_huey.huey",
            "-w",
            str(os.cpu_count()),
            "-k",
            "process",
        ]
        consumer = subprocess.Popen(
            [*command, "-q", "-d", "0.001"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while huey.pending_count() == count:
                time.sleep(0.002)
            run.begun = time.perf_counter()  # its start does not count against it
            run.left = huey.pending_count()
            while huey.pending_count():
                time.sleep(0.002)
            run.ended = time.perf_counter()
        finally:
            consumer.terminate()
            consumer.wait()

    # When it drains what was queued
    benchmark.pedantic(run, rounds=1)
    # Then this is its rate; that a task has left the queue counts, as Huey keeps no state of it
    figure("peer: Huey on SQLite, drain", rate(run.ended - run.begun, run.left), "jobs/s", "")
