"""The life of one run: decode the frame, find the task, decode the arguments, call, encode the result, report.

Every ending is an Outcome; the dispatcher decides what becomes of the job. Nothing in here talks to a store, but for a task
that completes its job over a connection of its own.
"""

from collections.abc import Callable
from traceback import clear_frames
from typing import Any, Final

import msgspec

from gotask._core.ring import Segment
from gotask.clock import monotonic
from gotask.context import Context
from gotask.errors import InvalidInput
from gotask.node import frame
from gotask.node.frame import Frame, Progress
from gotask.node.notices import Notices
from gotask.policy import Outcome
from gotask.task import Misfit, Task, Tasks
from gotask.verdict import clean, judge

NOTE_MAX: Final = 500  #: characters of a progress note that are kept
_encode_progress: Final = msgspec.msgpack.Encoder().encode


class RunLine:
    """The way from a task's Context to its node."""

    def __init__(self, runner: "Runner", ticket: int, job: Frame, task: Task[..., Any]) -> None:
        self._runner = runner
        self._ticket = ticket
        self._job = job
        self._task = task

    def report_progress(self, percent: float, note: str) -> None:
        self._runner.report(self._ticket, frame.PROGRESS, _encode_progress(Progress(percent, clean(note[:NOTE_MAX]))), False)

    def cancelled(self) -> bool:
        return self._runner.segment.cancelled(self._ticket)

    def cut_off(self) -> bool:
        return self._runner.notices.cut_off

    def complete(self, connection: Any, result: object) -> None:
        joined = self._runner.join(connection)
        raw = self._task.encode_result(result)
        self._runner.completing.add(self._ticket)
        self._runner.report(self._ticket, frame.COMPLETION, b"", False)
        joined.complete(self._job.id, self._job.lease, raw)


def no_store(_connection: Any) -> Any:
    """For a worker that stands alone."""
    raise InvalidInput("ctx.complete: this worker belongs to no storage.")


class Runner:
    """Runs jobs for one worker, in whatever thread or coroutine its caller chose."""

    def __init__(
        self, segment: Segment, owner: int, tasks: Tasks, notices: Notices, join: Callable[[Any], Any] = no_store
    ) -> None:
        self.segment = segment
        self.owner = owner
        self.tasks = tasks
        self.notices = notices
        self.join = join  #: from a connection of the user's to what the store can do in its transaction
        self.completing: set[int] = set()  #: tickets of runs that have tried to complete their job themselves

    def open(self, ticket: int, body: bytes) -> tuple[Frame, Task[..., Any]] | None:
        """The job of a frame and its task; None if there is no such task here, which is reported."""
        job = frame.decode(body)
        task = self.tasks.get(job.type)
        if task is None:
            self.end(ticket, Outcome("unknown", f"no worker here has a task called {job.type!r}"))
            return None
        return job, task

    def context(self, ticket: int, job: Frame, task: Task[..., Any]) -> Context | None:
        """What the task may know of its job; None unless it asks, because most do not."""
        if task.context_parameter is None:
            return None
        return Context(
            id=job.id,
            type=job.type,
            queue=job.queue,
            attempt=job.retry_count + job.crashes + 1,
            retry_count=job.retry_count,
            lease=job.lease,
            metadata=job.metadata,
            ends_at=monotonic() + job.timeout if job.timeout else None,
            line=RunLine(self, ticket, job, task),
        )

    def done(self, ticket: int, task: Task[..., Any], value: object) -> None:
        """The task returned."""
        if ticket in self.completing:
            self.end(ticket, Outcome("done"))
            return
        try:
            result = task.encode_result(value)
        except Misfit as error:
            self.end(ticket, Outcome("misfit", str(error)))
        else:
            self.report(ticket, frame.DONE, result, True)

    def failed(self, ticket: int, job: Frame, task: Task[..., Any], error: BaseException) -> None:
        """The task raised, or was made to."""
        outcome = judge(task, error, job.timeout)
        clear_frames(error.__traceback__)  # asyncio's hold each other, and with them the task's connections would stay open
        self.end(ticket, outcome)

    def end(self, ticket: int, outcome: Outcome) -> None:
        kind = frame.ENDED
        if ticket in self.completing:
            self.completing.discard(ticket)
            kind = frame.COMPLETION
        self.report(ticket, kind, frame.write_outcome(outcome), True)

    def report(self, ticket: int, kind: int, body: bytes, final: bool) -> None:
        self.segment.report(self.owner, ticket, kind, body, final)
