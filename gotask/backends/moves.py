"""One job from state to state, as changes of its Struct, for stores that decide in Python: SQL is then only guards and rows.

`attempts` keeps those that ended otherwise than in the current or last run, so that a job that succeeds at once has none to
write: its only run can be read from its own fields. A release is an attempt only if it says why (or its worker died): one
given back unstarted was none. A function that answers True has put the job at the end of its queue: it needs a new place.
"""

from datetime import datetime
from typing import Final

from msgspec import Raw

from gotask.backends.fields import cut
from gotask.clock import from_epoch
from gotask.model import ATTEMPTS_KEPT, CRASHES_MAX, Attempt, Job, Settlement
from gotask.states import DEAD_LETTER_KEEP_S, KEEP_S, ON_DUE, RULES, Event, State

RUNNING: Final = RULES[Event.LEASE].to
#: what a job that somebody asked to stop must not go on to
GOES_ON: Final = frozenset({Event.RETRY, Event.SNOOZE, Event.RELEASE})


def settle(job: Job, s: Settlement, now: float) -> None:
    """End the lease of a running job."""
    event = s.event
    if s.crashed:
        job.crashes += 1
    if event is Event.RETRY:
        job.retry_count += 1
    if job.cancel_requested and event in GOES_ON:
        event = Event.CANCEL
    if event in GOES_ON:
        if event is not Event.RELEASE or s.crashed or s.error or s.reason:
            note_attempt(job, event.value, from_epoch(now), cut(s.error))
        job.error = cut(s.error) if s.error is not None or event is not Event.RELEASE else job.error
        job.reason = s.reason
        if event is Event.RELEASE:
            queue_up(job)
        else:
            wait(job, RULES[event].to, now + (s.due_in or 0.0))
        return
    job.result = None if s.result is None else Raw(s.result)
    job.error = cut(s.error)
    job.reason = s.reason if s.reason is not None or event is not Event.CANCEL else job.reason
    if event is Event.BURY:
        bury(job, s.queue)
    finish(job, RULES[event].to, now, s.due_in if event is s.event else None)


def is_due(job: Job, now: float, dead_letters: str | None) -> bool:
    """Do what is due: promote, lapse or expire. `dead_letters` is where poison of the job's queue goes."""
    verb = ON_DUE[job.status].verb
    if verb == "promote":
        queue_up(job)
        return True
    if verb == "expire":
        finish(job, ON_DUE[job.status].to[0], now)
        return False
    return _lapse(job, now, dead_letters)


def _lapse(job: Job, now: float, dead_letters: str | None) -> bool:
    """Its node is gone: try again, or end it if it was to stop or has done this too often."""
    job.crashes += 1
    if job.cancel_requested:
        finish(job, RULES[Event.CANCEL].to, now)
    elif job.crashes >= CRASHES_MAX:
        bury(job, dead_letters)
        job.error = f"Its worker was lost {job.crashes} times while it ran."
        job.reason = "poison"
        finish(job, RULES[Event.BURY].to, now)
    else:
        note_attempt(job, "lapse", from_epoch(now), None)
        job.progress, job.progress_note = 0.0, None
        job.reason = "its lease lapsed"
        queue_up(job)
        return True
    return False


def cancel(job: Job, reason: str | None, now: float) -> None:
    """Stop a job that waits; mark one that runs."""
    job.reason = reason if reason is not None else job.reason
    if job.status is RUNNING:
        job.cancel_requested = True
    else:
        finish(job, RULES[Event.CANCEL].to, now)


def revive(job: Job, reason: str | None) -> None:
    """Start a finished job as if it were new; it queues up anew."""
    if job.started_at is not None:  # the last run was told by the job's own fields, which start anew
        note_attempt(job, job.status.value.lower(), job.completed_at, job.error)
    job.status = RULES[Event.REVIVE].to
    job.queue, job.origin_queue = job.origin_queue or job.queue, None
    job.retry_count = job.crashes = 0
    job.expires_at = job.due_at = job.started_at = job.completed_at = None
    job.result = job.error = job.worker_id = job.progress_note = None
    job.reason, job.progress, job.cancel_requested = reason, 0.0, False


def finish(job: Job, to: State, now: float, keep: float | None = None) -> None:
    """End a job; it is forgotten after `keep` seconds, or what its state says."""
    dead_letter = to is RULES[Event.BURY].to and job.origin_queue is not None
    usual = DEAD_LETTER_KEEP_S if dead_letter else KEEP_S[to]
    job.status = to
    job.completed_at = from_epoch(now)
    job.due_at = from_epoch(now + (usual if keep is None else keep))


def bury(job: Job, queue: str | None) -> None:
    """Move a job to its dead-letter queue, if there is another."""
    if queue is not None and queue != job.queue:
        job.origin_queue = job.origin_queue or job.queue
        job.queue = queue


def note_attempt(job: Job, outcome: str, ended: datetime | None, error: str | None) -> None:
    """Add the run that has ended to the list, which keeps the latest."""
    attempt = Attempt(job.worker_id, job.started_at, ended, outcome, error)
    job.attempts = [*(job.attempts or ()), attempt][-ATTEMPTS_KEPT:]


def wait(job: Job, to: State, due: float) -> None:
    """Let a job sleep until `due`."""
    job.status = to
    job.due_at = from_epoch(due)
    job.progress, job.progress_note = 0.0, None


def queue_up(job: Job) -> None:
    """PENDING; it can still expire if no attempt at it has been spent."""
    job.status = RULES[Event.RELEASE].to
    job.due_at = None if job.retry_count or job.crashes else job.expires_at
