"""Tasks that do what no task should, operators in a hurry, and loads that do not fit: each costs nobody else anything."""

import json
import time
from pathlib import Path

import pytest

from gotask.backends import Backend
from gotask.model import NewJob, Queue
from gotask.states import State
from tests.crash.harness import History, check, drained, enqueue, fetch, kill, node, until

MODES = {"serial": ("-c", "1"), "concurrent": ("-c", "8", "--processes", "1")}
WORK = json.dumps({"n": 1, "ms": 0})


#: what a task does -> what its error says
SENSELESS = {
    "retry in a word": "Retry takes a number of seconds",
    "retry never": "Retry takes a number of seconds",
    "snooze for no number": "Snooze takes a number of seconds",
    "progress in bytes": "note",
    "stray bytes": "ValueError",
    "unprintable": "Unprintable",
}


@pytest.mark.parametrize("mode", MODES)
def test_a_senseless_value_fails_its_own_job_only(mode: str, storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node
    with node(storage, tmp_path, *MODES[mode]) as running:
        before = running.family()
        for how, says in SENSELESS.items():
            # When a task says something senseless, with good jobs behind it
            [bad] = enqueue(backend, [("hostile", json.dumps({"how": how}))])
            good = enqueue(backend, [("work", WORK)] * 20)
            drained(backend, 20)
            # Then it has failed with a reason, the others are done, and no process had to be replaced
            job = fetch(backend, [bad])[bad]
            assert (job.status, job.reason, job.crashes) == (State.FAILED, "failed", 0), how
            assert says in (job.error or ""), how
            assert {one.status for one in fetch(backend, good).values()} == {State.SUCCESS}, how
            assert sorted(running.family()) == sorted(before), how


@pytest.mark.parametrize("how", ["real-time signal", "code of a configuration error"])
def test_an_odd_death_of_a_worker_is_only_that(how: str, storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "2") as running:
        [bad] = enqueue(backend, [("hostile", json.dumps({"how": how}))])
        good = enqueue(backend, [("work", WORK)] * 20)
        drained(backend, 20)
        assert fetch(backend, [bad])[bad].reason == "poison"
        assert {one.status for one in fetch(backend, good).values()} == {State.SUCCESS}
        assert running.process.poll() is None


def test_a_coroutine_that_exits_beside_its_task_ends_nobody(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, *MODES["concurrent"]) as running:
        workers = {child.pid for child in running.of("worker")}
        naps = enqueue(backend, [("nap", json.dumps({"n": n, "seconds": 0.5})) for n in range(5)])
        [bad] = enqueue(backend, [("hostile_coroutine", json.dumps({"how": "child exits"}))])
        drained(backend, 20)
        assert {(one.status, one.crashes) for one in fetch(backend, [*naps, bad]).values()} == {(State.SUCCESS, 0)}
        assert {child.pid for child in running.of("worker")} == workers


def test_a_thread_that_raises_as_its_limit_strikes_is_reported(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, *MODES["concurrent"]) as running:
        workers = {child.pid for child in running.of("worker")}
        [job_id] = enqueue(backend, [("late_exception", "{}")])
        drained(backend, 4)
        assert fetch(backend, [job_id])[job_id].status is State.FAILED
        assert {child.pid for child in running.of("worker")} == workers


def test_what_a_task_prints_is_not_lost(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1") as running:
        enqueue(backend, [("shout", json.dumps({"text": "heard in the log"}))])
        drained(backend)
        assert running.stop() == 0
        assert "heard in the log" in running.log.read_text()


def test_no_queue_starves_beside_an_empty_one(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node of one slot that serves two queues, and jobs it takes for long ones
    with node(storage, tmp_path, "-c", "1", "-Q", "empty,full"):
        enqueue(backend, [("work", json.dumps({"n": 0, "ms": 1200}))], queue="full")
        drained(backend)
        # When only one of the queues has jobs
        begun = time.monotonic()
        enqueue(backend, [("work", WORK)] * 20, queue="full")
        drained(backend)
        # Then they follow each other at once
        assert time.monotonic() - begun < 1.5


def test_a_delayed_job_starts_on_time_on_an_idle_node(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1"):
        for idle in (0.0, 0.15, 0.3, 0.45, 0.6, 0.75):
            # Given a node that has had nothing to do for a while
            time.sleep(idle)
            # When a job comes in that is due before anything the node knew of
            [asked] = backend.enqueue_many([NewJob(type="shout", payload=_raw({"text": ""}), delay=0.2)])
            drained(backend)
            # Then it starts when it is due
            job = fetch(backend, [asked.job.id])[asked.job.id]
            assert job.started_at is not None
            assert job.created_at is not None
            late = (job.started_at - job.created_at).total_seconds() - 0.2
            assert 0 <= late < 0.25, f"{late:.3f} s late"


def _raw(value: object):
    from msgspec import Raw

    return Raw(json.dumps(value).encode())


def test_a_burst_goes_on_while_a_limit_holds_jobs_back(storage: str, backend: Backend, tmp_path: Path) -> None:
    backend.put(Queue(name="default", rate_limit=5.0))
    ids = enqueue(backend, [("work", WORK)] * 12)
    with node(storage, tmp_path, "-c", "2", "--burst") as running:
        assert running.process.wait(30) == 0
    assert {job.status for job in fetch(backend, ids).values()} == {State.SUCCESS}


def test_payloads_that_fill_the_segment_are_leased_as_they_fit(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given far more of large payloads than a node can hold at once, behind short jobs that taught it to lease ahead
    with node(storage, tmp_path, "-c", "2") as running:
        enqueue(backend, [("work", WORK)] * 2000)
        drained(backend)
        size = 600_000
        ids = enqueue(backend, [("echo_size", json.dumps({"text": "x" * size}))] * 100)
        # When they are run
        drained(backend, 60)
        # Then all are, and few had to be given back
        assert {bytes(job.result or b"") for job in fetch(backend, ids).values()} == {str(size).encode()}
        assert running.process.poll() is None
        leases = max(job.lease for job in fetch(backend, ids).values())
        # Redis numbers leases by the time, and they say nothing of how many there were
        assert leases < 400 or storage.startswith(("redis", "postgres")), f"{leases} lease calls for 100 jobs"


def test_a_dispatcher_that_dies_while_the_node_stops_costs_nothing(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node that was told to stop with jobs under way
    with node(storage, tmp_path, "-c", "2") as running:
        ids = enqueue(backend, [("nap", json.dumps({"n": n, "seconds": 2.0})) for n in range(2)])
        until("both run", lambda: len(History.read(running.witness).starts) == 2)
        running.process.terminate()
        time.sleep(0.3)
        # When its dispatcher is killed before they end
        [dispatcher] = running.of("dispatcher")
        kill(dispatcher.pid)
        # Then another one writes their ends down, and the node stops well
        assert running.process.wait(20) == 0
        check(backend, ids, {job: n for n, job in enumerate(ids)}, History.read(running.witness), faults=0)


def test_two_rolls_at_once_are_two_rolls(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "2") as running:
        old = {child.pid for child in running.of("worker")}
        running.process.send_signal(1)
        time.sleep(0.05)
        running.process.send_signal(1)
        until(
            "all are new, and two", lambda: not old & {c.pid for c in running.of("worker")} and len(running.of("worker")) == 2
        )
        ids = enqueue(backend, [("work", WORK)] * 50)
        drained(backend, 20)
        assert {job.status for job in fetch(backend, ids).values()} == {State.SUCCESS}


def test_a_roll_to_an_app_that_does_not_load_leaves_the_old_workers_at_work(
    storage: str, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    # Given a node whose app stands in a file
    app = tmp_path / "fragile.py"
    app.write_text("from gotask import GoTask\napp = GoTask()\n\n@app.task\ndef one() -> int:\n    return 1\n")
    monkeypatch.setenv("PYTHONPATH", f"{os.getcwd()}:{tmp_path}")
    with node(storage, tmp_path, "-c", "1", app="fragile:app") as running:
        [first] = enqueue(backend, [("one", "{}")])
        until("the app works", lambda: fetch(backend, [first])[first].status is State.SUCCESS)
        # When a broken version of it is rolled out
        app.write_text("1 / 0\n")
        running.process.send_signal(1)
        until("it was tried", lambda: "ZeroDivisionError" in running.log.read_text())
        # Then the old workers go on
        [second] = enqueue(backend, [("one", "{}")])
        until("it still works", lambda: fetch(backend, [second])[second].status is State.SUCCESS)
        assert running.process.poll() is None


def test_a_task_can_end_what_it_forked(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1"):
        [job_id] = enqueue(backend, [("ends_its_own_child", "{}")])
        drained(backend, 20)
        assert bytes(fetch(backend, [job_id])[job_id].result or b"") == b"-15"  # the number of SIGTERM
