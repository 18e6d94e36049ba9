"""Jobs that kill their worker, raise what should end a program, or ignore their time limit."""

import json
from pathlib import Path

import pytest

from gotask.backends import Backend
from gotask.model import CRASHES_MAX
from gotask.states import Event, State
from tests.crash.harness import History, alive, check, children, drained, enqueue, fetch, node, until


@pytest.mark.parametrize("how", ["kill", "exit", "segfault", "abort"])
def test_a_job_that_kills_its_worker_is_buried_after_three(how: str, backend: Backend, storage: str, tmp_path: Path) -> None:
    # Given a poison job among good ones
    with node(storage, tmp_path, "-c", "2") as running:
        [poison] = enqueue(backend, [("poison", json.dumps({"how": how}))])
        good = enqueue(backend, [("work", json.dumps({"n": n, "ms": 1})) for n in range(500)])
        # When all have ended
        drained(backend)
        # Then it was started three times, is FAILED as poison, and spent no retry
        history = History.read(running.witness)
        job = fetch(backend, [poison])[poison]
        assert history.starts[poison] == CRASHES_MAX
        assert (job.status, job.reason, job.crashes, job.retry_count) == (State.FAILED, "poison", CRASHES_MAX, 0)
        assert "its worker died" in (job.error or "")
        # And the good ones ran once
        del history.starts[poison], history.leases[poison]
        check(backend, good, {job: n for n, job in enumerate(good)}, history, faults=0)


def test_what_would_end_a_program_only_fails_the_job(backend: Backend, storage: str, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1") as running:
        workers = {child.pid for child in running.of("worker")}
        for how in ("sys.exit", "keyboard", "recursion", "memory"):
            [job_id] = enqueue(backend, [("raiser", json.dumps({"how": how}))])
            drained(backend)
            job = fetch(backend, [job_id])[job_id]
            assert (job.status, job.reason, job.crashes) == (State.FAILED, "failed", 0), how
            assert "Traceback" in (job.error or ""), how
            assert {child.pid for child in running.of("worker")} == workers, how


def test_neighbours_of_a_poison_job_in_one_worker_are_not_buried(backend: Backend, storage: str, tmp_path: Path) -> None:
    # Given one worker of many slots, all busy
    with node(storage, tmp_path, "-c", "8", "--processes", "1") as running:
        naps = enqueue(backend, [("nap", json.dumps({"n": n, "seconds": 1.0})) for n in range(6)])
        until("the naps have begun", lambda: len(History.read(running.witness).starts) == 6)
        # When a job beside them kills the worker
        [poison] = enqueue(backend, [("poison", json.dumps({"how": "kill"}))])
        drained(backend)
        # Then the suspects ran again, alone, and ended well; only the culprit is poison
        jobs = fetch(backend, naps)
        assert {job.status for job in jobs.values()} == {State.SUCCESS}
        assert {job.crashes for job in jobs.values()} == {1}
        assert fetch(backend, [poison])[poison].reason == "poison"


def test_a_task_that_ignores_its_limit_is_killed_and_its_neighbours_go_free(
    backend: Backend, storage: str, tmp_path: Path
) -> None:
    # Given a worker that runs a task which swallows every exception, beside one that sleeps long
    with node(storage, tmp_path, "-c", "2", "--processes", "1", "--shutdown-timeout", "2") as running:
        [stubborn] = enqueue(backend, [("stubborn", "{}")])
        [neighbour] = enqueue(backend, [("nap_until", json.dumps({"path": f"{tmp_path}/morning"}))])
        # When its limit and the grace have passed
        until("the stubborn job has failed", lambda: fetch(backend, [stubborn])[stubborn].status is State.FAILED, 20)
        # Then it failed by its time limit, and its neighbour was given back without penalty
        assert fetch(backend, [stubborn])[stubborn].reason == "timeout"
        (tmp_path / "morning").touch()
        drained(backend)
        released = fetch(backend, [neighbour])[neighbour]
        assert (released.status, released.crashes, released.retry_count) == (State.SUCCESS, 0, 0)
        assert History.read(running.witness).starts[neighbour] == 2


def test_a_running_job_is_cancelled_and_one_that_ignores_it_is_killed(backend: Backend, storage: str, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "2") as running:
        ids = enqueue(backend, [("nap", json.dumps({"n": 1, "seconds": 100.0})), ("work", json.dumps({"n": 1, "ms": 100_000}))])
        until("both run", lambda: len(History.read(running.witness).starts) == 2)
        # When they are cancelled
        assert backend.move_many(ids, Event.CANCEL) == [True, True]
        # Then both stop, and soon
        until("both are cancelled", lambda: {j.status for j in fetch(backend, ids).values()} == {State.CANCELLED}, 3)


def test_stopping_burns_no_attempt_and_leaves_nothing(backend: Backend, storage: str, tmp_path: Path) -> None:
    # Given a node with long jobs under way and more waiting
    shm = set(Path("/dev/shm").iterdir())
    with node(storage, tmp_path, "-c", "2", "--shutdown-timeout", "1") as running:
        ids = enqueue(backend, [("nap", json.dumps({"n": n, "seconds": 30.0})) for n in range(10)])
        until("two run", lambda: len(History.read(running.witness).starts) >= 2)
        family = running.family()
        # When it is told to stop, and they do not end in time
        assert running.stop() == 0
        # Then all are waiting again, nothing was burned, and no process or shared memory is left
        jobs = fetch(backend, ids).values()
        assert {job.status for job in jobs} == {State.PENDING}
        assert {(job.retry_count, job.crashes) for job in jobs} == {(0, 0)}
        assert not any(alive(pid) for pid in family)
        assert not children(running.process.pid)
        assert set(Path("/dev/shm").iterdir()) <= shm


def test_stopping_gives_back_what_had_not_started(backend: Backend, storage: str, tmp_path: Path) -> None:
    # Given a node that has learned that jobs are short, so that it leases many ahead
    with node(storage, tmp_path, "-c", "2") as running:
        short = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(3000)])
        drained(backend)
        # When longer ones come, and it is told to stop with some of them waiting in its hands
        long = enqueue(backend, [("work", json.dumps({"n": n, "ms": 300})) for n in range(400)])
        until("it runs them", lambda: len(History.read(running.witness).starts) > len(short))
        assert running.stop() == 0
        # Then each is either done or waits again, at once
        jobs = fetch(backend, long).values()
        assert {job.status for job in jobs} == {State.SUCCESS, State.PENDING}
        assert {(job.retry_count, job.crashes) for job in jobs} == {(0, 0)}


def test_a_running_job_may_end_while_the_node_stops(backend: Backend, storage: str, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1") as running:
        [job_id] = enqueue(backend, [("nap", json.dumps({"n": 1, "seconds": 1.5}))])
        until("it runs", lambda: History.read(running.witness).starts[job_id] == 1)
        assert running.stop() == 0
        assert fetch(backend, [job_id])[job_id].status is State.SUCCESS


def test_a_node_rolls_to_new_workers_without_losing_or_repeating(backend: Backend, storage: str, tmp_path: Path) -> None:
    # Given a node at work
    with node(storage, tmp_path, "-c", "2") as running:
        old = {child.pid for child in running.of("worker")}
        ids = enqueue(backend, [("work", json.dumps({"n": n, "ms": 5})) for n in range(600)])
        # When it gets SIGHUP
        running.process.send_signal(1)
        # Then new workers take over, the old ones end, and each job has run once
        until("the old workers are gone", lambda: not old & {child.pid for child in running.of("worker")}, 20)
        drained(backend)
        assert len(running.of("worker")) == 2
        check(backend, ids, {job: n for n, job in enumerate(ids)}, History.read(running.witness), faults=0)


def test_workers_are_recycled_after_so_many_jobs(backend: Backend, storage: str, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "2", "--max-jobs", "50") as running:
        old = {child.pid for child in running.of("worker")}
        ids = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(1000)])
        drained(backend)
        check(backend, ids, {job: n for n, job in enumerate(ids)}, History.read(running.witness), faults=0)
        until("the first workers are gone", lambda: not old & {child.pid for child in running.of("worker")})


@pytest.mark.parametrize("slots", ["1", "4"])
def test_a_worker_that_grew_too_big_is_replaced(slots: str, backend: Backend, storage: str, tmp_path: Path) -> None:
    # Given a worker with a bound on its memory
    with node(storage, tmp_path, "-c", slots, "--processes", "1", "--max-memory", "200M") as running:
        [old] = running.of("worker")
        # When its tasks leak beyond it
        ids = enqueue(backend, [("hoard", json.dumps({"megabytes": 150}))] * 2)
        drained(backend, 20)
        # Then it is replaced, and no job has suffered from it
        until("another worker has taken its place", lambda: [c.pid for c in running.of("worker")] not in ([], [old.pid]), 10)
        assert {(job.status, job.crashes) for job in fetch(backend, ids).values()} == {(State.SUCCESS, 0)}
