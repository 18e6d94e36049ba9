"""Real processes to kill: a node (or all of `gotask up`) as a user starts it, and what its tasks witnessed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gotask import backends
from gotask.backends import Backend
from gotask.model import Enqueued, Job, NewJob
from gotask.states import FINISHED, State
from tests.crash.answer import answer

#: jobs and kills in a storm: a quarter in CI, where 0.2 is seen to catch every planted bug; `make crash` has 10
SCALE: Final = float(os.environ.get("CRASH_SCALE", "0.25"))


def until(what: str, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until `condition`; fail with `what` it was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    pid: int
    name: str


def children(pid: int) -> list[Process]:
    """The direct children of a process, with the names they gave themselves."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            stat = (path / "stat").read_text()
            name = (path / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.append(Process(int(path.name), name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Node:
    """One `gotask-worker` process and its children."""

    def __init__(self, storage: str, folder: Path, *flags: str, app: str = "tests.crash.tasks:app") -> None:
        self.storage = storage
        self._app = app
        self.witness = folder / "witness"
        self.log = folder / "node.log"
        self._flags = flags
        self._env = {
            **os.environ,
            "GOTASK_STORAGE": storage,
            "GOTASK_STATE_DIR": str(folder),
            "WITNESS": str(self.witness),
            "PYTHONPATH": os.environ.get("PYTHONPATH") or os.getcwd(),
        }
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "gotask.cli.worker", "-A", self._app, "--health-port=0", *self._flags]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=self._env, stdout=log, stderr=log)

    def restart(self) -> None:
        self.process.wait()
        self.process = self._start()

    def of(self, kind: str) -> list[Process]:
        """Its live children of a kind: worker or dispatcher."""
        return [child for child in children(self.process.pid) if child.name.startswith(f"gotask-{kind}"[:15])]

    def up(self) -> None:
        until("the node is up", lambda: bool(self.of("worker")) and bool(self.of("dispatcher")))

    def stop(self, seconds: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def family(self) -> list[int]:
        return [self.process.pid, *(child.pid for child in children(self.process.pid))]


@contextmanager
def node(storage: str, folder: Path, *flags: str, app: str = "tests.crash.tasks:app") -> Iterator[Node]:
    """A node for the length of a test; whatever the test does, no process of it is left afterwards."""
    started = Node(storage, folder, *flags, app=app)
    try:
        started.up()
        yield started
    finally:
        family = started.family()
        for pid in family:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        started.process.wait()
        until("all processes of the node are gone", lambda: not any(alive(pid) for pid in family), 5.0)


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def enqueue(backend: Backend, bodies: Iterable[tuple[str, str]], **fields: object) -> list[str]:
    """Accept jobs given as (type, JSON payload), in batches; their ids."""
    import msgspec

    jobs = [NewJob(type=kind, payload=msgspec.Raw(text.encode()), **fields) for kind, text in bodies]  # type: ignore[arg-type]
    answers: list[Enqueued] = []
    for at in range(0, len(jobs), 1000):
        answers += backend.enqueue_many(jobs[at : at + 1000])
    assert all(one.outcome == "created" for one in answers)
    return [one.job.id for one in answers]


def drained(backend: Backend, seconds: float = 120.0) -> None:
    def nothing_left() -> bool:
        return not any(count for (_, state), count in backend.counts().items() if state not in FINISHED)

    until("every job has ended", nothing_left, seconds)


def fetch(backend: Backend, ids: list[str]) -> dict[str, Job]:
    found: list[Job | None] = []
    for at in range(0, len(ids), 1000):
        found += backend.get_many(ids[at : at + 1000])
    return {job.id: job for job in found if job is not None}


@dataclass
class History:
    """What the witness file says: how often each job was begun and ended, and under which leases."""

    starts: Counter[str]
    ends: Counter[str]
    leases: dict[str, list[int]]

    @classmethod
    def read(cls, path: Path) -> "History":
        history = cls(Counter(), Counter(), {})
        for line in path.read_text().splitlines() if path.exists() else []:
            what, job, lease, _pid, _at = line.split()
            if what == "start":
                history.starts[job] += 1
                history.leases.setdefault(job, []).append(int(lease))
            else:
                history.ends[job] += 1
        return history


def check(backend: Backend, ids: list[str], numbers: dict[str, int], history: History, faults: int) -> Counter[str]:
    """Each accepted job ended exactly once and well; no phantom ran; leases rose; re-runs have a cause.

    `faults` bounds how many runs may have been repeated: those that were under way in what was killed.
    """
    jobs = fetch(backend, ids)
    lost = [job for job in ids if job not in jobs]
    assert not lost, f"{len(lost)} accepted jobs are gone, such as {lost[0]}"
    bad = [job for job in jobs.values() if job.status is not State.SUCCESS]
    assert not bad, f"{len(bad)} jobs did not end well, such as {bad[0]}"
    for job_id, number in numbers.items():
        assert bytes(jobs[job_id].result or b"") == f'"{answer(number)}"'.encode(), f"{job_id} has a wrong result"
    phantoms = set(history.starts) - set(ids)
    assert not phantoms, f"{len(phantoms)} jobs ran that nobody accepted"
    for job_id, leases in history.leases.items():
        assert leases == sorted(set(leases)), f"{job_id} ran twice under one lease, or under an older one: {leases}"
        assert jobs[job_id].lease >= leases[-1]
        assert history.ends[job_id] >= 1, f"{job_id} is SUCCESS and its body never ended"
    extra = sum(count - 1 for count in history.starts.values())
    assert extra <= faults, f"{extra} runs were repeated, and only {faults} were interrupted"
    return Counter({"jobs": len(ids), "repeated": extra})


def opened(storage: str) -> Backend:
    return backends.open(storage)
