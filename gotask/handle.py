"""What a producer holds after enqueueing: one job, or one queue, seen from outside."""

import os
import re
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Protocol, TypeVar

import msgspec
from msgspec import Raw

from gotask import clock, sentences
from gotask.draft import Within
from gotask.errors import BackendDown, Conflict, GotaskError, InvalidInput, JobFailed, NotFound, ResultTimeout
from gotask.model import Attempt, Job, NewJob, QueueStats
from gotask.states import FINISHED, State

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from gotask.service import Service

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

LISTEN_S: Final = 30.0  #: seconds one call waits for a job's end; a server answers before proxies give up
AWAIT_S: Final = 1.0  #: seconds a thread stays with one awaited job: a cancelled await must not hold up the program's exit
AWAIT_THREADS: Final = 64  #: awaits that are answered the moment their job ends; with more, they take turns of AWAIT_S

_threads: dict[int, "ThreadPoolExecutor"] = {}  # by process: a fork inherits the object but not its threads


_HEAD: Final = "Traceback (most recent call last):"
_CHAIN: Final = re.compile(
    r"\n(?:During handling of the above exception, another exception occurred"
    r"|The above exception was the direct cause of the following exception):\n\n"
)
_GROUP: Final = re.compile(r"^  [|+] ", re.MULTILINE)  # what the lines of an exception group begin with
_CLASS: Final = re.compile(r"(?:\w+\.)*(\w+)(?::|$)")


class Door(Protocol):
    """An app, as far as its handles need it."""

    @property
    def service(self) -> "Service": ...


class RemoteTraceback(Exception):
    """The worker's traceback, as text: the cause of a JobFailed."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class JobHandle(Generic[R_co]):
    """One job. Its fields are those of the last look: `refresh()` takes another, `wait()` and `result()` too."""

    __slots__ = ("_door", "_job", "_read", "id")

    def __init__(
        self, door: Door, id: str, job: Job | None = None, read: Callable[[bytes], R_co] = msgspec.json.decode
    ) -> None:
        self._door = door
        self.id = id
        self._job = job
        self._read = read

    def __repr__(self) -> str:
        known = f" {self._job.type} {self._job.status}" if self._job else ""
        return f"<JobHandle {self.id}{known}>"

    @property
    def job(self) -> Job:
        """All there is to know of the job, as of the last look."""
        if self._job is None:
            self._job = self._door.service.get_job(self.id)
        return self._job

    @property
    def state(self) -> State:
        return self.job.status

    @property
    def error(self) -> str | None:
        """The text of its latest failure."""
        return self.job.error

    @property
    def attempts(self) -> list[Attempt]:
        """Its runs, oldest first."""
        return self.job.attempts or []

    @property
    def progress(self) -> float:
        """Per cent, as the task last said."""
        return self.job.progress

    @property
    def progress_note(self) -> str | None:
        return self.job.progress_note

    @property
    def ended(self) -> bool:
        return self.job.status in FINISHED

    def refresh(self) -> "JobHandle[R_co]":
        """Look again. Raises NotFound once a finished job has been forgotten."""
        self._job = self._door.service.get_job(self.id)
        return self

    def cancel(self) -> None:
        """Stop the job. A running one is asked to, and ends a moment later. Raises Conflict if it has ended."""
        self._door.service.cancel_job(self.id)
        self._job = None

    def revive(self) -> None:
        """Run a failed, cancelled or expired job again, from the start. Raises Conflict in any other state."""
        self._job = self._door.service.retry_job(self.id)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job has ended, at most `timeout` seconds; whether it has."""
        end = None if timeout is None else clock.monotonic() + timeout
        while self._job is None or self._job.status not in FINISHED:
            left = LISTEN_S if end is None else min(LISTEN_S, end - clock.monotonic())
            self._job = self._door.service.wait_job(self.id, max(left, 0.0))
            if left <= 0:
                break
        return self.ended

    def result(self, timeout: float | None = None) -> R_co:
        """What the task returned, as its return type; waits for it, at most `timeout` seconds.

        Raises ResultTimeout, or JobFailed for a job that ended without success; the worker's traceback is its cause.
        """
        if not self.wait(timeout):
            begin = f"Job {self.id} is still {self.state} after {timeout:g} seconds"
            raise ResultTimeout(begin + (self._hindrance() or "; wait longer or look later."))
        return self._outcome()

    def __await__(self) -> Generator[Any, None, R_co]:
        """`await job` is `result()` for coroutines."""
        while self._job is None or self._job.status not in FINISHED:
            yield from in_thread(self.wait, AWAIT_S).__await__()
        return self._outcome()

    def _hindrance(self) -> str:
        """Why nothing will run the job, as the end of a sentence; empty if somebody may, or if that cannot be told."""
        job = self.job
        if job.status is not State.PENDING:
            return ""
        try:
            serving = [one for one in self._door.service.list_workers().workers if job.queue in one.queues]
        except GotaskError:  # the timeout is what there is to tell
            return ""
        if not serving:
            return f": no worker serves queue {job.queue!r}; start one with `gotask worker -Q {job.queue}`."
        if all(job.type not in one.types for one in serving):
            return f": no worker of queue {job.queue!r} has a task {job.type!r}; start one whose app has it (-A)."
        return ""

    def _outcome(self) -> R_co:
        job = self.job
        if job.status is not State.SUCCESS:
            raise _failure(job) from (RemoteTraceback(job.error) if job.error else None)
        try:
            return self._read(bytes(job.result) if job.result is not None else b"null")
        except msgspec.ValidationError as error:
            misfit = sentences.sentence(error, None)
            raise InvalidInput(
                f"Job {self.id} ({job.type}) is SUCCESS, but what it returned is not of its task's return type: {misfit}"
            ) from None


def _failure(job: Job) -> JobFailed:
    line = _telling_line(job.error or "")
    reason = (line or job.reason or "no reason was kept").rstrip(".")
    kind = _CLASS.match(line) if job.status is State.FAILED else None
    return JobFailed(
        f"Job {job.id} ({job.type}) is {job.status}: {reason}.",
        job_id=job.id,
        reason=reason,
        error_type=kind[1] if kind else None,
    )


def _telling_line(text: str) -> str:
    """The line of an error's text that says what it was: of a traceback, the first one after the frames."""
    if text.startswith("TimeLimit:"):
        return text.partition("\n")[0]
    last = _GROUP.sub("", _CHAIN.split(text)[-1])  # an exception that others led to stands at the end
    return next(
        (line for line in last.split("\n") if line and not line.startswith((" ", _HEAD, f"Exception Group {_HEAD}"))), ""
    )


class QueueHandle:
    """One queue: its counts, and the levers people pull."""

    def __init__(self, door: Door, name: str) -> None:
        self._door = door
        self.name = name

    def __repr__(self) -> str:
        return f"<QueueHandle {self.name}>"

    def stats(self) -> QueueStats:
        """How many of its jobs are in each state; a queue nobody has used yet has none."""
        try:
            return self._door.service.queue_stats(self.name)
        except NotFound:
            return QueueStats(self.name)

    def pause(self) -> None:
        """Start no more of its jobs, on any node, until it is resumed."""
        self._door.service.pause_queue(self.name)

    def resume(self) -> None:
        self._door.service.resume_queue(self.name)

    def purge(self) -> int:
        """Delete all its jobs that wait to run; how many there were."""
        return self._door.service.purge_queue(self.name).deleted


def handed_in(door: Door, jobs: list[NewJob], read: Callable[[bytes], T], within: Within | None = None) -> list[JobHandle[T]]:
    """Enqueue jobs that are known to be sound, as one batch, straight into the store or over HTTP."""
    service = door.service
    if not hasattr(service, "enqueue"):
        if within is not None:
            raise InvalidInput("connection: a server cannot take part in your transaction; give the app the storage itself.")
        return _sent(door, jobs, read)
    answers = service.enqueue(jobs) if within is None else service.enqueue(jobs, within)
    if all(answer.outcome == "created" for answer in answers):
        return [JobHandle(door, answer.job.id, answer.job, read) for answer in answers]
    from gotask.service import accepted  # loaded already, and by apps that never enqueue not needed

    return [JobHandle(door, answer.job.id, accepted(answer), read) for answer in answers]


def _sent(door: Door, jobs: list[NewJob], read: Callable[[bytes], T]) -> list[JobHandle[T]]:
    if len(jobs) == 1:
        job = door.service.create_job(jobs[0])
        return [JobHandle(door, job.id, job, read)]
    from gotask.calls import Batch

    items = door.service.create_jobs(Batch([Raw(msgspec.json.encode(job)) for job in jobs])).items if jobs else []
    for index, item in enumerate(items):
        if item.id is None or item.error is not None:
            kind = {"conflict": Conflict, "unavailable": BackendDown}.get(item.outcome, InvalidInput)
            raise kind(f"Job {index} of its batch: {item.error}")
    return [JobHandle(door, item.id, None, read) for item in items if item.id is not None]


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what blocks, in a thread of ours: the loop's own few are the user's."""
    import asyncio  # here, because a producer without a loop need not load it
    from concurrent.futures import ThreadPoolExecutor

    threads = _threads.get(os.getpid())
    if threads is None:
        threads = _threads.setdefault(os.getpid(), ThreadPoolExecutor(AWAIT_THREADS, thread_name_prefix="gotask-await"))
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: function(*args, **kwargs))
