"""The operations of GoTask, each once. They know a Backend and nothing of HTTP; gotask.calls says how the API offers them."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gotask import __version__, clock, draft
from gotask.backends import Backend, ids, joined
from gotask.backends.fields import stands
from gotask.calls import (
    Batch,
    BatchAnswer,
    BatchItem,
    Health,
    JobList,
    Message,
    Metrics,
    Patience,
    WorkerList,
    call,
    decode,
)
from gotask.draft import Within
from gotask.errors import BackendDown, Conflict, GotaskError, NotFound
from gotask.model import Attempt, Enqueued, Filter, Job, NewJob, Queue, Worker
from gotask.queues import DEFAULT_QUEUE, Queues
from gotask.states import FINISHED, RULES, Event, State, possible

JobId = Annotated[str, Meta(description="The job's id.")]

LISTEN_S: Final = 5.0  #: seconds between looks at a job that is waited for: rings come sooner, this is for a lost one
CHUNK: Final = 1000  #: jobs of a batch that are stored at once; between two chunks other producers get their turn
#: what a person can ask of a job, by the API's word; the other events come from the holder of its lease
BY_HAND: Final = {Event.CANCEL: "cancel", Event.REVIVE: "retry"}
_ENDED_BY: Final = {rule.to: str(event) for event, rule in RULES.items() if rule.to in FINISHED}


class Service(Queues):
    """What can be done with the jobs of one store. `gotask.client.open` gives the same over HTTP."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._since = clock.monotonic()

    def close(self) -> None:
        self.backend.close()

    # jobs

    @call("POST", "/api/v1/jobs", "enqueue", status=201)
    def create_job(self, job: NewJob) -> Job:
        """Enqueue a job. The same id with the same body is answered with the job that stands, as often as it is sent."""
        return accepted(self.enqueue([checked(job)])[0])

    @call("POST", "/api/v1/jobs/batch", "enqueue")
    def create_jobs(self, batch: Batch) -> BatchAnswer:
        """Enqueue up to 10,000 jobs. Each is answered for itself: a bad one does not spoil the others."""
        items: list[BatchItem | None] = [None] * len(batch.jobs)
        good: list[tuple[int, NewJob]] = []
        for place, raw in enumerate(batch.jobs):
            try:
                good.append((place, admitted(decode(NewJob, bytes(raw)))))
            except GotaskError as error:
                items[place] = BatchItem("invalid", code=error.http, error=str(error))
        for (place, _), answer in zip(good, self._in_chunks([job for _, job in good]), strict=True):
            items[place] = _item(answer)
        told = [item for item in items if item is not None]
        created, duplicates = (sum(item.outcome == word for item in told) for word in ("created", "duplicate"))
        return BatchAnswer(told, created, duplicates, len(told) - created - duplicates)

    def _in_chunks(self, jobs: Sequence[NewJob]) -> list[Enqueued | BackendDown]:
        """The answers for a large batch, unless none of it was accepted. After a failure the store is not asked for more."""
        answers: list[Enqueued | BackendDown] = []
        failures: list[BackendDown] = []
        while len(answers) < len(jobs) and not failures:
            answers += self.enqueue_each(jobs[len(answers) : len(answers) + CHUNK])
            failures = [answer for answer in answers if isinstance(answer, BackendDown)]
        if failures and len(failures) == len(answers):
            raise failures[0]
        return answers + failures[:1] * (len(jobs) - len(answers))

    def enqueue(self, jobs: Sequence[NewJob], within: Within | None = None) -> list[Enqueued]:
        """Enqueue jobs that `checked` or `admitted` has seen, in one batch; with `within`, in that transaction."""
        if within is None:
            return self.backend.enqueue_many(jobs)
        answers: list[Enqueued] = joined(self.backend, within.connection).enqueue_many(jobs, notify=within.notify)
        return answers

    def enqueue_each(self, jobs: Sequence[NewJob]) -> list[Enqueued | BackendDown]:
        """The same, when the store may accept some and fail at others: those it has not accepted are answered by the error."""
        made = iter(ids.make(sum(not job.id for job in jobs)))
        named = [job if job.id else replace(job, id=next(made)) for job in jobs]
        try:
            return list(self.enqueue(named))
        except BackendDown as error:
            there: Sequence[Job | None] = [None] * len(named)
            if error.refused and len(named) > 1:  # else nobody answers, or there is nothing to tell apart
                with suppress(BackendDown):
                    there = self.backend.get_many([job.id for job in named])
            return [
                error if found is None else _stands(asked, new, found)
                for asked, new, found in zip(jobs, named, there, strict=True)
            ]

    @call("GET", "/api/v1/jobs", "read")
    def list_jobs(self, filter: Filter) -> JobList:
        """List jobs, newest first, by queue, status, type and more."""
        page = self.backend.find(filter)
        jobs = [told(job) for job in page.jobs]
        return JobList(jobs, len(jobs), filter.limit, filter.offset, page.next_cursor)

    @call("GET", "/api/v1/jobs/{id}", "read")
    def get_job(self, id: JobId) -> Job:
        """Get a job."""
        job = self.backend.get_many([id])[0]
        return told(existing(id, job))

    @call("GET", "/api/v1/jobs/{id}/wait", "read")
    def wait_job(self, id: JobId, timeout: Patience = 30.0) -> Job:
        """Wait up to `timeout` seconds for a job to end, and get it, ended or not."""
        end = clock.monotonic() + timeout
        watch = self.backend.watch([f"job:{id}"])
        try:
            while (job := self.get_job(id)).status not in FINISHED and (left := end - clock.monotonic()) > 0:
                watch.wait(min(left, LISTEN_S))
            return job
        finally:
            watch.close()

    @call("POST", "/api/v1/jobs/{id}/cancel", "operate")
    def cancel_job(self, id: JobId) -> Message:
        """Cancel a job. One that runs is asked to stop, and ends a moment later."""
        self._move(id, Event.CANCEL)
        job = self.backend.get_many([id])[0]
        running = job is not None and job.status is State.RUNNING
        return Message(f"Job {id} is running and was asked to stop." if running else f"Job {id} is cancelled.")

    @call("POST", "/api/v1/jobs/{id}/retry", "operate")
    def retry_job(self, id: JobId) -> Job:
        """Put a job that failed, expired or was cancelled back into its queue, its counters at zero."""
        self._move(id, Event.REVIVE)
        return self.get_job(id)

    def _move(self, id: str, event: Event) -> None:
        for _ in range(2):  # a job may pass into a fitting state between the refusal and the look at it
            if self.backend.move_many([id], event)[0]:
                return
            job = self.get_job(id)
            if job.status not in RULES[event].sources:
                raise Conflict(f"Job {id} is {job.status}, where {BY_HAND[event]} is not possible; {_options(job.status)}")
        if event is Event.REVIVE and job.unique_key:
            raise Conflict(f"Another job holds the unique key of job {id}: it can be retried when that one has ended.")
        raise Conflict(f"Job {id} changes too quickly; get it, and try again.")

    @call("DELETE", "/api/v1/jobs/{id}", "operate")
    def delete_job(self, id: JobId) -> Message:
        """Delete a job, unless it is running."""
        if not self.backend.drop_many([id])[0]:
            job = self.get_job(id)
            raise Conflict(f"Job {id} is {job.status}, where delete is not possible; {_options(job.status)}")
        return Message(f"Job {id} is deleted.")

    # the system

    @call("GET", "/api/v1/workers", "read")
    def list_workers(self) -> WorkerList:
        """List the nodes."""
        workers = self.backend.all(Worker)
        return WorkerList(workers, len(workers))

    @call("GET", "/api/v1/metrics", "read")
    def metrics(self) -> Metrics:
        """The system in numbers."""
        totals: dict[str, int] = {str(state): 0 for state in State}
        queues: dict[str, dict[str, int]] = {}
        for (queue, state), number in self.backend.counts().items():
            totals[state] += number
            queues.setdefault(queue, {str(state): 0 for state in State})[state] += number
        workers = self.backend.all(Worker)
        return Metrics(
            version=__version__,
            uptime_seconds=clock.monotonic() - self._since,
            storage=self.backend.promise,
            jobs=totals,
            queues=queues,
            paused=[queue.name for queue in self.backend.all(Queue) if queue.paused],
            workers=len(workers),
            slots=sum(worker.slots for worker in workers),
        )

    @call("GET", "/health", "public")
    def health(self) -> Health:
        """Whether this process answers; the store is not asked."""
        return Health("ok")

    @call("GET", "/livez", "public")
    def livez(self) -> Health:
        """The same as /health, by Kubernetes' name."""
        return Health("ok")

    @call("GET", "/ready", "public")
    def ready(self) -> Health:
        """Whether the store answers in time."""
        self.backend.get(Queue, DEFAULT_QUEUE)
        return Health("ready")

    @call("GET", "/readyz", "public")
    def readyz(self) -> Health:
        """The same as /ready, by Kubernetes' name."""
        return self.ready()


def checked(job: NewJob) -> NewJob:
    """A job from Python code, held to the same bounds as one that came as JSON."""
    draft.encoded(job.payload)  # first: it is part of what is decoded next, and has a sentence of its own
    draft.check_words(job)
    return admitted(decode(NewJob, msgspec.json.encode(job)))


def admitted(job: NewJob) -> NewJob:
    """A decoded job, its payload looked at once and for all."""
    draft.encoded(job.payload)
    draft.check_times(job)
    return job


def existing(id: str, job: Job | None) -> Job:
    """A job that was looked up. Raises NotFound."""
    if job is None:
        raise NotFound(f"There is no job {id!r}: its id is wrong, or it ended long ago and was forgotten.")
    return job


def accepted(answer: Enqueued) -> Job:
    """The job of an answered enqueue. Raises Conflict for a known id with another body."""
    if answer.outcome == "conflict":
        raise Conflict(f"There is a job {answer.job.id!r} with another body: use a new id, or the same body.")
    return told(answer.job)


def told(job: Job) -> Job:
    """A job as it is shown: its latest attempt is in the list too, made from the job's own fields."""
    attempts = list(job.attempts or ())
    if job.started_at is not None and not (attempts and attempts[-1].started_at == job.started_at):
        ended = _ENDED_BY.get(job.status, "")
        attempts.append(Attempt(job.worker_id, job.started_at, job.completed_at, ended, job.error))
    return replace(job, attempts=attempts)


def _stands(asked: NewJob, new: NewJob, job: Job) -> Enqueued:
    """The answer for a job that is there after an enqueue failed. One that came with an id may have been there before."""
    if not asked.id:
        return Enqueued("created", job)
    return stands(new, job)


def _item(answer: Enqueued | BackendDown) -> BatchItem:
    if isinstance(answer, BackendDown):
        return BatchItem("unavailable", code=answer.http, error=str(answer))
    try:
        job = accepted(answer)
    except Conflict as error:
        return BatchItem("conflict", answer.job.id, code=error.http, error=str(error))
    return BatchItem(answer.outcome, job.id, job.status)


def _options(state: State) -> str:
    open_now = [BY_HAND[event] for event in possible(state) if event in BY_HAND]
    return f"possible now: {', '.join(open_now if state is State.RUNNING else [*open_now, 'delete'])}."
