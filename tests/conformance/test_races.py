"""Many threads and many processes on one store: no job is held twice, each ends once, nothing is lost."""

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from lab import Lab, new
from racer import run

from gotask.states import State

HERE = Path(__file__).parent


def judge(lab: Lab, total: int, starts: list[tuple[str, int, str]]) -> None:
    # Then no lease of a job was given twice, none was lost, each job was acked once, and the counts agree
    assert max(Counter((id, lease) for id, lease, _ in starts).values()) == 1
    assert not [start for start in starts if start[2] == "lost"]
    acked = Counter(id for id, _, how in starts if how == "ack")
    assert len(acked) == total
    assert set(acked.values()) == {1}
    assert lab.store.counts() == {("default", State.SUCCESS): total}


def test_threads_with_a_connection_each(lab: Lab) -> None:
    # Given eight threads that race for jobs while more are enqueued
    total, starts, failed = 1200, [], []

    def race(number: int) -> None:
        try:
            starts.extend(run(lab.target.opener, lab.url, f"thread-{number}", total))
        except BaseException as e:
            failed.append(e)
            raise

    racers = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in racers:
        thread.start()
    store = lab.another(moved=False)
    for _ in range(12):
        store.enqueue_many([new() for _ in range(total // 12)])
    for thread in racers:
        thread.join(60)
        assert not thread.is_alive()
    assert failed == []
    judge(lab, total, starts)


def test_one_connection_for_all_threads(lab: Lab) -> None:
    # Given one Backend that four threads use
    store = lab.another(moved=False)
    answers: list[str] = []

    def enqueue(number: int) -> None:
        for n in range(50):
            answers.extend(a.outcome for a in store.enqueue_many([new(id=f"j{(number % 2) * 1000 + n}")]))

    threads = [threading.Thread(target=enqueue, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    # Then each id was created once
    assert Counter(answers) == {"created": 100, "duplicate": 100}


def test_processes(lab: Lab) -> None:
    # Given four processes that race
    total = 1200
    store = lab.another(moved=False)
    store.enqueue_many([new() for _ in range(total)])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    racers = [
        subprocess.Popen(
            [sys.executable, str(HERE / "racer.py"), lab.target.opener, lab.url, f"process-{n}", str(total)],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    starts = []
    for racer in racers:
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        for line in out.splitlines():
            id, lease, how = [*line.split(" "), ""][:3]
            starts.append((id, int(lease), how))
    judge(lab, total, starts)
