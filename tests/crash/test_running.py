"""How a node runs jobs: time limits in each mode, many slots, progress, large results, burst, PID 1."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gotask.backends import Backend
from gotask.model import PAYLOAD_MAX
from gotask.states import State
from tests.crash.harness import History, children, drained, enqueue, fetch, node, until

MODES = {"main thread": ("-c", "1", "--processes", "1"), "threads and loop": ("-c", "8", "--processes", "1")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("task", "starts"), [("spin", 2), ("overnap", 1)])
def test_a_time_limit_is_an_exception_in_every_mode(
    mode: str, task: str, starts: int, storage: str, backend: Backend, tmp_path: Path
) -> None:
    # Given a task that runs past its limit, as a function or a coroutine
    with node(storage, tmp_path, *MODES[mode]) as running:
        workers = {child.pid for child in running.of("worker")}
        [job_id] = enqueue(backend, [(task, "{}")])
        # When the limit has come, as often as its retries allow
        drained(backend, 20)
        # Then it failed for that reason, with the place where it was, and its worker lives on
        job = fetch(backend, [job_id])[job_id]
        assert (job.status, job.reason) == (State.FAILED, "timeout")
        assert "TimeLimit" in (job.error or "")
        assert "tasks.py" in (job.error or "")
        assert History.read(running.witness).starts[job_id] == starts
        assert {child.pid for child in running.of("worker")} == workers


def test_a_time_limit_ends_a_system_call_in_the_main_thread(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1"):
        begun = time.monotonic()
        [job_id] = enqueue(backend, [("oversleep", "{}")])
        drained(backend, 20)
        assert time.monotonic() - begun < 4
        assert fetch(backend, [job_id])[job_id].reason == "timeout"


def test_a_thousand_jobs_sleep_side_by_side(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node of a thousand slots
    with node(storage, tmp_path, "-c", "1000", "--processes", "2") as running:
        ids = enqueue(backend, [("nap", json.dumps({"n": n, "seconds": 5.0})) for n in range(1000)])
        # When a thousand jobs sleep five seconds each
        until("all of them run at once", lambda: len(History.read(running.witness).starts) == 1000, 30)
        assert not History.read(running.witness).ends
        # Then they end together
        drained(backend, 30)
        assert {job.status for job in fetch(backend, ids).values()} == {State.SUCCESS}


def test_progress_is_seen_while_a_job_runs(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1"):
        [job_id] = enqueue(backend, [("steps", json.dumps({"count": 100}))])
        seen: set[float] = set()

        def done() -> bool:
            job = fetch(backend, [job_id])[job_id]
            if job.status is State.RUNNING and job.progress:
                assert job.progress_note == f"step {job.progress:.0f}"
                seen.add(job.progress)
            return job.status is State.SUCCESS

        until("the job has ended", done, 20)
        assert len(seen) >= 2
        assert sorted(seen)[-1] < 100


def test_the_largest_payload_and_result_go_through(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given results from nothing to the most there may be, and one beyond it
    sizes = [0, 1, 500, 100_000, PAYLOAD_MAX - 2]
    with node(storage, tmp_path, "-c", "2"):
        ids = enqueue(backend, [("big", json.dumps({"size": size})) for size in [*sizes, PAYLOAD_MAX]])
        padding = "y" * (PAYLOAD_MAX - 100)
        [padded] = enqueue(backend, [("echo_padding", json.dumps({"padding": padding}))])
        until("all but the unknown have ended", lambda: backend.counts().get(("default", State.SUCCESS), 0) == len(sizes))
        # Then each is what it was, and the one that is too large says so
        jobs = fetch(backend, ids)
        assert [len(bytes(jobs[job].result or b"")) for job in ids[:-1]] == [size + 2 for size in sizes]
        until("the large one has failed", lambda: fetch(backend, ids)[ids[-1]].status is State.FAILED)
        assert "1 MiB" in (fetch(backend, ids)[ids[-1]].error or "") or "bytes" in (fetch(backend, ids)[ids[-1]].error or "")
        assert bytes(fetch(backend, [padded])[padded].payload) == json.dumps({"padding": padding}).encode()


def test_burst_ends_when_the_queues_are_empty(storage: str, backend: Backend, tmp_path: Path) -> None:
    ids = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(500)])
    with node(storage, tmp_path, "-c", "2", "--burst") as running:
        assert running.process.wait(30) == 0
    assert {job.status for job in fetch(backend, ids).values()} == {State.SUCCESS}


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)")
def test_a_node_is_a_good_init_process(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node as process 1 of its own namespace, with a task that leaves an orphan behind
    env = {**os.environ, "GOTASK_STORAGE": storage, "GOTASK_STATE_DIR": str(tmp_path), "WITNESS": str(tmp_path / "witness")}
    command = ["unshare", "-p", "-f", "--mount-proc", sys.executable, "-m", "gotask.cli.worker"]
    with (tmp_path / "log").open("wb") as log:
        outer = subprocess.Popen(
            [*command, "-A", "tests.crash.tasks:app", "--health-port=0", "-c", "2"], env=env, stdout=log, stderr=log
        )
    try:
        until("process 1 is up", lambda: bool(children(outer.pid)))
        [init] = children(outer.pid)
        ids = enqueue(backend, [("fork_and_die", "{}") for _ in range(20)])
        drained(backend, 30)
        # When all its orphans have ended
        until("the node has reaped them", lambda: not zombies(init.pid), 5)
        # Then it stops when told to, as an ordinary process would
        os.kill(init.pid, 15)
        assert outer.wait(20) == 0
        assert {job.status for job in fetch(backend, ids).values()} == {State.SUCCESS}
    finally:
        outer.kill()
        outer.wait()


def zombies(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == "Z" and int(ppid) == parent:
            found.append(int(path.parent.name))
    return found


def test_a_preloaded_app_runs_and_an_app_that_starts_threads_is_refused(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given an app loaded before the fork
    with node(storage, tmp_path, "-c", "2", "--preload"):
        ids = enqueue(backend, [("work", json.dumps({"n": n, "ms": 0})) for n in range(20)])
        drained(backend, 20)
        assert {job.status for job in fetch(backend, ids).values()} == {State.SUCCESS}
    # And one whose import starts a thread, so that forking would be a gamble
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nfrom gotask import GoTask\napp = GoTask()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-m", "gotask.cli.worker", "-A", "threaded:app", "--preload", "--health-port=0"],
        env={
            **os.environ,
            "GOTASK_STORAGE": storage,
            "GOTASK_STATE_DIR": str(tmp_path),
            "PYTHONPATH": f"{os.getcwd()}:{tmp_path}",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    # Then the node says so in one sentence
    assert answer.returncode == 2
    assert "cannot fork safely" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_changed_source_file_rolls_the_workers(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a node in development mode
    source = "from gotask import GoTask\napp = GoTask()\n\n@app.task\ndef version() -> int:\n    return {}\n"
    (tmp_path / "changing.py").write_text(source.format(1))
    env = {**os.environ, "GOTASK_STORAGE": storage, "GOTASK_STATE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "gotask.cli.worker", "-A", "changing:app", "--reload", "--health-port=0", "-c", "1"]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)

    def answer() -> bytes:
        [job] = enqueue(backend, [("version", "{}")])
        until("the job has ended", lambda: fetch(backend, [job])[job].status is State.SUCCESS)
        return bytes(fetch(backend, [job])[job].result or b"")

    try:
        assert answer() == b"1"
        # When its app changes
        until("the watcher is up", lambda: any(child.name == "gotask-reloader"[:15] for child in children(running.pid)))

        def changed() -> bool:
            (tmp_path / "changing.py").write_text(source.format(2))
            return answer() == b"2"

        # Then new workers have the new code
        until("the new code runs", changed)
        running.terminate()
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait()


def test_cancelling_reaches_threads_and_coroutines_beside_others(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given one worker with a thread, a coroutine and a sleeper that is not meant
    from gotask.states import Event

    with node(storage, tmp_path, "-c", "8", "--processes", "1") as running:
        meant = enqueue(backend, [("steps", json.dumps({"count": 100_000})), ("nap", json.dumps({"n": 1, "seconds": 100}))])
        [other] = enqueue(backend, [("nap", json.dumps({"n": 2, "seconds": 3.0}))])
        until("they run", lambda: all(job.status is State.RUNNING for job in fetch(backend, [*meant, other]).values()))
        workers = {child.pid for child in running.of("worker")}
        # When two of the three are cancelled
        assert backend.move_many(meant, Event.CANCEL) == [True, True]
        # Then these end so, and the third goes on to its end in the same process
        until("both are cancelled", lambda: {j.status for j in fetch(backend, meant).values()} == {State.CANCELLED}, 4)
        drained(backend, 10)
        job = fetch(backend, [other])[other]
        assert (job.status, len(job.attempts or [])) == (State.SUCCESS, 0)
        assert {child.pid for child in running.of("worker")} == workers
