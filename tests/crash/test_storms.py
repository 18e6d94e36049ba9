"""SIGKILL at random, of each kind of process. `make crash` sets CRASH_SCALE=10: 1,000 kills over 200,000 jobs."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import NewJob, Queue
from gotask.states import State
from tests.crash.harness import SCALE, History, Node, alive, check, drained, enqueue, fetch, kill, node, opened, until

pytestmark = pytest.mark.timeout(1800)
JOBS = int(20_000 * SCALE)
KILLS = int(100 * SCALE)


def numbered(count: int, dice: random.Random) -> list[tuple[str, str]]:
    """Job bodies of mostly no length, some of up to 20 ms."""
    return [("work", json.dumps({"n": n, "ms": dice.choice([0, 0, 0, 0, 0, 0, 0, 1, 5, 20])})) for n in range(count)]


def open_files(running: Node) -> int:
    """Of arbiter and dispatcher, which outlive all those workers."""
    lasting = [running.process.pid, *(child.pid for child in running.of("dispatcher"))]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in lasting)


def storm(victims: Callable[[], list[int]], kills: int, pause: tuple[float, float], dice: random.Random) -> int:
    """Kill one random victim after another; how many were hit."""
    hit = 0
    while hit < kills:
        time.sleep(dice.uniform(*pause))
        found = victims()
        hit += bool(found) and kill(dice.choice(found))
    return hit


def test_workers_are_killed_all_the_time_and_every_job_ends_once(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node of four workers and thousands of accepted jobs
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print(f"SEED={seed}")
    dice = random.Random(seed)
    with node(storage, tmp_path, "-c", "4", "--processes", "4") as running:
        ids = enqueue(backend, numbered(JOBS, dice))
        until("the node works", lambda: bool(History.read(running.witness).starts))
        before = open_files(running)
        # When a random worker is killed every 30 to 80 ms while they run
        hit = storm(lambda: [child.pid for child in running.of("worker")], KILLS, (0.03, 0.08), dice)
        drained(backend, 300 * max(1, SCALE))
        # Then each has ended once, with its own result, and no more was repeated than was interrupted
        history = History.read(running.witness)
        assert hit == KILLS
        check(backend, ids, {job: n for n, job in enumerate(ids)}, history, faults=hit)
        # And the node has all its workers again, and as many open files as before, but for a few connections to the store,
        # which are opened when several threads first need one at once: far fewer than one for each kill
        until("four workers live", lambda: len(running.of("worker")) == 4)
        until("no file is left open", lambda: open_files(running) <= before + min(4, KILLS // 4))


def test_the_dispatcher_is_killed_and_nobody_notices(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node at work
    dice = random.Random(2)
    kills = max(5, KILLS // 5)
    with node(storage, tmp_path, "-c", "2") as running:
        ids = enqueue(backend, numbered(JOBS // 2, dice))
        # When its dispatcher is killed again and again
        hit = storm(lambda: [child.pid for child in running.of("dispatcher")], kills, (0.1, 0.3), dice)
        drained(backend, 300 * max(1, SCALE))
        # Then nothing is lost, nothing was started again, and no job is held to have crashed
        history = History.read(running.witness)
        check(backend, ids, {job: n for n, job in enumerate(ids)}, history, faults=0)
        assert {job.crashes for job in fetch(backend, ids).values()} == {0}
        assert hit == kills


def test_the_arbiter_is_killed_and_a_new_node_goes_on_at_once(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node at work, with a lease far longer than this test
    dice = random.Random(3)
    kills = max(3, int(5 * SCALE))
    with node(storage, tmp_path, "-c", "2", "--lease", "600") as running:
        ids = enqueue(backend, numbered(JOBS // 4, dice))
        interrupted = 0
        for _ in range(kills):
            time.sleep(dice.uniform(0.5, 1.0))
            family = running.family()
            # When the topmost process is killed
            kill(running.process.pid)
            running.process.wait()
            # Then no process of the node outlives it
            until("no orphan is left", lambda family=family: not any(alive(pid) for pid in family), 2.0)
            interrupted += backend.counts().get(("default", State.RUNNING), 0)
            running.restart()
        # And what was in its hands comes back without waiting for the lease, each to end once
        drained(backend, 60 * max(1, SCALE))
        check(backend, ids, {job: n for n, job in enumerate(ids)}, History.read(running.witness), faults=interrupted)


def test_without_faults_each_job_runs_exactly_once(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given jobs of which a tenth is delayed and a tenth fails at first
    with node(storage, tmp_path, "-c", "2") as running:
        plain = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(JOBS // 4)])
        late = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(JOBS // 40)], delay=0.5)
        flaky = enqueue(backend, [("flaky", json.dumps({"n": n})) for n in range(JOBS // 40)])
        # When nobody kills anything
        drained(backend)
        # Then every plain job has run once, and every failing one once more than that
        history = History.read(running.witness)
        numbers = {job: n for ids in (plain, late, flaky) for n, job in enumerate(ids)}
        assert {history.starts[job] for job in plain + late} == {1}
        assert {history.starts[job] for job in flaky} == {2}
        check(backend, plain + late + flaky, numbers, history, faults=len(flaky))
        assert {job.retry_count for job in fetch(backend, flaky).values()} == {1}


def test_a_burst_of_one_instant_is_started_whole(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given thousands of jobs that are due at one and the same time
    from datetime import UTC, datetime, timedelta

    moment = datetime.now(UTC) + timedelta(seconds=1.5)
    with node(storage, tmp_path, "-c", "2") as running:
        ids = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(JOBS)], scheduled_at=moment)
        # When that time has come
        drained(backend)
        # Then none was started before it, and all have run once
        history = History.read(running.witness)
        check(backend, ids, {job: n for n, job in enumerate(ids)}, history, faults=0)
        assert all(job.started_at and job.started_at >= moment for job in fetch(backend, ids).values())


def test_a_job_longer_than_its_lease_runs_once(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a lease of one second, jobs of two, and twice as many of them as slots
    with node(storage, tmp_path, "-c", "20", "--processes", "2", "--lease", "1") as running:
        ids = enqueue(backend, [("nap", json.dumps({"n": n, "seconds": 2.0})) for n in range(40)])
        # When they run on a healthy node
        drained(backend)
        # Then the lease was extended for all of them
        check(backend, ids, {job: n for n, job in enumerate(ids)}, History.read(running.witness), faults=0)


def test_a_stopped_node_is_fenced_when_it_wakes(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given two nodes with short leases, one of which freezes with jobs in hand
    (tmp_path / "b").mkdir(mode=0o700)
    with node(storage, tmp_path, "-c", "2", "--lease", "1") as first:
        ids = enqueue(backend, [("work", json.dumps({"n": n, "ms": 20})) for n in range(300)])
        until("the first node has begun", lambda: len(History.read(first.witness).starts) > 10)
        family = freeze(first, storage)
        # When it sleeps for longer than its lease while the other takes over, and then wakes
        with node(storage, tmp_path / "b", "-c", "2", "--lease", "1") as second:
            drained(backend, 30)
            before = fetch(backend, ids)
            for pid in reversed(family):
                kill(pid, signal.SIGCONT)
            late = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(50)])
            drained(backend, 30)
            # Then what it settles late changes nothing
            assert fetch(backend, ids) == before
            assert all(job.crashes <= 1 for job in before.values())
            check_both(ids, late, first, second)


def freeze(running: Node, storage: str) -> list[int]:
    """Stop all processes of a node, at an instant at which none of them is writing to the store: an embedded store has one
    writer, so one that is stopped in the middle would hold up all others for as long, and there would be nothing to see."""
    family = running.family()
    impatient = opened(f"{storage}{'&' if '?' in storage else '?'}timeout=0.3")
    try:
        for _ in range(50):
            for pid in family:
                kill(pid, signal.SIGSTOP)
            try:
                impatient.put(Queue(name="probe"))
                return family
            except BackendDown:
                for pid in family:
                    kill(pid, signal.SIGCONT)
                time.sleep(0.01)
        raise AssertionError("the node was always writing")
    finally:
        impatient.close()


def check_both(ids: list[str], late: list[str], first: Node, second: Node) -> None:
    starts = History.read(first.witness).starts + History.read(second.witness).starts
    assert set(starts) == {*ids, *late}
    assert sum(starts.values()) - len(ids) - len(late) <= 10  # what the frozen node had in hand, and no more


def test_unknown_types_are_kept(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a job whose type no worker has
    with node(storage, tmp_path, "-c", "1"):
        job = backend.enqueue_many([NewJob(type="nobody-has-this")])[0].job
        # When a node has met it
        until("the job is snoozed", lambda: fetch(backend, [job.id])[job.id].reason is not None)
        # Then it waits, and says what for
        met = fetch(backend, [job.id])[job.id]
        assert met.status == "SCHEDULED"
        assert "nobody-has-this" in (met.reason or "")
        assert (met.retry_count, met.crashes) == (0, 0)
