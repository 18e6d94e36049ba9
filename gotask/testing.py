"""For tests of programs that use GoTask: run their jobs here and now, by the rules a node goes by.

`inline(app)` runs each job as it is enqueued, with no store at all. `drain(app)` runs what lies in the app's store. Both
pass arguments and results through JSON and end jobs as `gotask.policy` says, so that a test sees what production would.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, cast
from uuid import uuid4

from msgspec import Raw

from gotask import clock, policy
from gotask.app import GoTask
from gotask.backends import Backend, joined
from gotask.calls import Message
from gotask.context import Context, NoLine
from gotask.draft import Within
from gotask.errors import Cancelled, Conflict, InvalidInput, NotFound, TimeLimit
from gotask.model import Beat, Became, Enqueued, Job, JobBody, NewJob, Queue, Settlement
from gotask.policy import Outcome
from gotask.service import Service
from gotask.states import RULES, Event, possible
from gotask.task import Task, Tasks
from gotask.verdict import judge, uncommitted

LEASE_S: Final = 30.0  #: seconds; as a node's
BATCH: Final = 100  #: jobs of a queue that are leased at once
RUNS_MAX: Final = 10_000  #: runs after which jobs are taken to put themselves back for ever


@contextmanager
def inline(app: GoTask) -> Iterator[None]:
    """Within it, enqueueing a job runs it at once: delays are not waited for, and retries follow each other directly."""
    before = app._stand_in
    app._stand_in = _Inline(app.tasks)
    try:
        yield
    finally:
        app._stand_in = before


def drain(app: GoTask) -> int:
    """Run all jobs in the app's store that are due, and those they enqueue, until none is left; how many runs it took.

    Jobs whose time has not come stay, as do those of types that the app has no task for.
    """
    backend, owner, runs = app.service.backend, f"drain:{uuid4().hex}", 0
    while True:
        backend.tick()
        queues = {*app.tasks.queues, *(queue for queue, _ in backend.counts())}
        jobs = backend.lease(dict.fromkeys(sorted(queues), BATCH), owner, LEASE_S)
        if not jobs:
            return runs
        for job in jobs:
            line, queue = _Line(backend, job, app.tasks.get(job.type)), backend.get(Queue, job.queue)
            outcome = line.counted(_run_once(app.tasks, job, line, queue))
            if outcome is not None:
                backend.settle_many([_settlement(app.tasks, job, outcome, queue)])
        runs += len(jobs)
        if runs > RUNS_MAX:
            raise InvalidInput(f"{runs} runs, and jobs are still due: does a task snooze for no time, or enqueue itself?")


class _Line(NoLine):
    """Lets a task say its progress to the store, and hear of its cancellation."""

    def __init__(self, backend: Backend, job: Job, task: Task[..., Any] | None) -> None:
        super().__init__()
        self._backend = backend
        self._job = job
        self._task = task
        self._completing = False

    def report_progress(self, percent: float, note: str) -> None:
        super().report_progress(percent, note)
        self._backend.extend_many([Beat(self._job.id, self._job.lease, percent, note)], LEASE_S)

    def cancelled(self) -> bool:
        job = self._backend.get_many([self._job.id])[0]
        return job is not None and job.cancel_requested

    def complete(self, connection: Any, result: object) -> None:
        assert self._task is not None, "only a task can ask for this"
        inside, raw = joined(self._backend, connection), self._task.encode_result(result)
        self._completing = True
        inside.complete(self._job.id, self._job.lease, raw)

    def counted(self, outcome: Outcome) -> Outcome | None:
        """The outcome that counts; None if the task completed its job itself, or had no right to any more."""
        if not self._completing:
            return outcome
        (became,) = self._backend.completions([(self._job.id, self._job.lease)])  # type: ignore[attr-defined]  # postgres
        if became is Became.OPEN:
            raise InvalidInput(f"Job {self._job.id} was completed in a transaction that is still open: commit it in the task.")
        return uncommitted(outcome, was_open=False) if became is Became.UNDONE else None


class _Inline(Service):
    """A service whose jobs have ended by the time they are enqueued."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(cast(Backend, None))  # what it would be asked for is answered below
        self._tasks = tasks
        self._jobs: dict[str, Job] = {}

    def close(self) -> None:
        pass

    def enqueue(self, jobs: Sequence[NewJob], within: Within | None = None) -> list[Enqueued]:  # noqa: ARG002  # it runs at once
        return [self._enqueue(job) for job in jobs]

    def _enqueue(self, new: NewJob) -> Enqueued:
        if new.id in self._jobs:
            return Enqueued("duplicate", self._jobs[new.id])
        if new.type not in self._tasks:
            raise InvalidInput(f"There is no task called {new.type!r} in this app to run inline.")
        job = Job(**{field: getattr(new, field) for field in JobBody.__struct_fields__})
        job.id = job.id or uuid4().hex
        self._jobs[job.id] = job
        self._run(job)
        return Enqueued("created", job)

    def _run(self, job: Job) -> None:
        while True:
            line = NoLine()
            end = _settlement(self._tasks, job, _run_once(self._tasks, job, line, None), None)
            job.status = RULES[end.event].to
            job.result = None if end.result is None else Raw(end.result)
            job.error, job.reason = end.error, end.reason
            if line.said:
                job.progress, job.progress_note = line.said[-1]
            if end.event is not Event.RETRY:
                return
            job.retry_count += 1

    def get_job(self, id: str) -> Job:
        if id not in self._jobs:
            raise NotFound(f"There is no job {id!r} among those that ran inline.")
        return self._jobs[id]

    def wait_job(self, id: str, timeout: float = 0.0) -> Job:  # noqa: ARG002 - it has ended
        return self.get_job(id)

    def cancel_job(self, id: str) -> Message:
        job = self.get_job(id)
        self._need(job, Event.CANCEL)
        job.status = RULES[Event.CANCEL].to
        return Message(f"Job {id} is cancelled.")

    def retry_job(self, id: str) -> Job:
        job = self.get_job(id)
        self._need(job, Event.REVIVE)
        job.retry_count, job.status = 0, RULES[Event.REVIVE].to
        self._run(job)
        return job

    def _need(self, job: Job, event: Event) -> None:
        if event not in possible(job.status):
            raise Conflict(f"Job {job.id} is {job.status}, where {event} is not possible.")


def _run_once(tasks: Tasks, job: Job, line: NoLine, queue: Queue | None) -> Outcome:
    task = tasks.get(job.type)
    if task is None:
        return Outcome("unknown", f"there is no task called {job.type!r} here")
    limit = policy.resolve(job, task.rules, queue).timeout
    ends_at = clock.monotonic() + limit if limit else None
    return _outcome(task, job, _context(job, line, ends_at), limit or 0.0)


def _settlement(tasks: Tasks, job: Job, outcome: Outcome, queue: Queue | None) -> Settlement:
    """Judge a run as a node does."""
    task = tasks.get(job.type)
    rules = policy.resolve(job, task.rules if task is not None else None, queue)
    return policy.decide(job, outcome, rules, queue.dead_letter_queue if queue is not None else None, 0.0)


def _context(job: Job, line: NoLine, ends_at: float | None) -> Context:
    attempt = job.retry_count + job.crashes + 1
    return Context(job.id, job.type, job.queue, attempt, job.retry_count, job.lease, job.metadata, ends_at=ends_at, line=line)


def _outcome(task: Task[..., Any], job: Job, context: Context, limit: float) -> Outcome:
    try:
        value = task.call(task.decode(bytes(job.payload)), context)
        return Outcome("done", result=task.encode_result(_awaited(value) if task.is_async else value))
    except (Exception, TimeLimit, Cancelled) as error:
        return judge(task, error, limit)


def _awaited(coroutine: Any) -> Any:
    """The value of a coroutine, also where a loop is running already: then in a thread with a loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, coroutine).result()
