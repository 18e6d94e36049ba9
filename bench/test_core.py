"""The segment alone, and what a worker adds to a job."""

import json
import subprocess
import time
from math import inf
from pathlib import Path

import pytest

from bench.node import PAYLOAD
from gotask._core.ring import Segment
from gotask.model import Job
from gotask.node import frame
from gotask.node.notices import Notices
from gotask.node.run import Runner
from gotask.node.serial import SerialWorker
from gotask.task import Task, Tasks


def test_ring_between_two_processes(benchmark, figure, tmp_path: Path) -> None:
    # Given the ring's C text alone, compiled as the extension is
    binary = tmp_path / "ring"
    subprocess.run(
        ["gcc", "-std=c11", "-O2", "-D_GNU_SOURCE", "-Igotask/_core", "bench/ring.c", "-o", str(binary), "-lpthread"],
        check=True,
    )

    def run() -> float:
        return float(
            json.loads(subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout)["frames_per_second"]
        )

    # When frames go through it from one process to another and back
    rates = [run() for _ in range(5)]
    benchmark.pedantic(run, rounds=1)
    # Then this is how many a second
    figure("ring, raw", sorted(rates)[2], "frames/s", ">= 5,000,000")


@pytest.mark.parametrize("count", [2000])
def test_cost_of_one_job_in_a_worker(benchmark, figure, count: int) -> None:
    # Given a worker of one slot and a segment full of no-op jobs
    def noop(text: str) -> None:
        pass

    tasks = Tasks()
    tasks.add(Task(noop))
    segment = Segment(slots=4096, workers=1, report_bytes=1 << 20)
    owner = segment.enlist(0)
    worker = SerialWorker(Runner(segment, owner, tasks, Notices()), 0, 0)
    body = frame.encode(Job(id="0" * 36, type="noop", payload=PAYLOAD), 300.0)
    costs = []

    def put() -> None:
        segment.free_many([report.ticket for report in segment.drain(count)])
        segment.forget()
        assert len(segment.put_many([(body, 1, 300.0, 5.0, inf)] * count)) == count

    def run() -> None:
        begun = time.perf_counter()
        for _ in range(count):
            worker._perform(*segment.claim(owner, True, 0.0))
        costs.append((time.perf_counter() - begun) / count)

    # When it runs them
    benchmark.pedantic(run, setup=put, rounds=50)
    # Then claim, decode, call, encode and report cost this much together
    figure("worker's own cost per no-op job", sorted(costs)[25] * 1e6, "µs", "<= 2")
