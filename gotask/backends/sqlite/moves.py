"""One job from state to state, as changes of its Struct, and their way into the tables.

`attempts` keeps those that ended otherwise than in the current or last run, so that a job that succeeds at once has none to
write: its only run can be read from its own fields. A release is an attempt only if it says why (or its worker died): one
given back unstarted was none.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import apsw

from gotask.backends.sqlite import sql
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.schema import reader, writer
from gotask.clock import from_epoch
from gotask.model import ATTEMPTS_KEPT, Attempt, Job
from gotask.states import DEAD_LETTER_KEEP_S, FINISHED, KEEP_S, RULES, Event, State

_read = reader(sql.SETTLE_COLUMNS)
_changed = writer(tuple(name for name in sql.CHANGED if name != "place"))
_PLACE = sql.CHANGED.index("place")


class Standing:
    """A job as a transaction found it: enough of its Struct to move it, and where it stands."""

    __slots__ = ("found", "job", "moved", "place", "queue", "seq")

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.seq: int = row[0]
        self.place: int = row[1]
        self.job = _read(row)
        self.found = self.job.status
        self.queue = self.job.queue
        self.moved = False


def standing(db: apsw.Connection, ids: Iterable[str]) -> dict[str, Standing]:
    """Those of the jobs that are known, by id."""
    asked = known(ids)
    return {row[2]: Standing(row) for row in db.execute(sql.ENDING, (apsw.carray(asked),))} if asked else {}


def known(ids: Iterable[str]) -> tuple[str, ...]:
    """Those of the ids that could name a job at all."""
    return tuple(id for id in ids if id.isascii() and "\0" not in id)


def write(txn: Txn, moved: list[Standing]) -> None:
    """Store what was changed, each guarded by the state and lease it was found with, and note who must hear of it."""
    queued = [at for at in moved if at.place == 0]
    if queued:  # they queue up anew
        last = txn.db.execute(sql.TAKE_PLACES, (len(queued),)).get
        for place, at in enumerate(queued, last - len(queued) + 1):
            at.place = place
    rows = []
    for at in moved:
        job = at.job
        job.updated_at = from_epoch(txn.now)
        values = _changed(job)
        rows.append((*values[:_PLACE], at.place, *values[_PLACE:], at.seq, at.found.value, job.lease))
        if job.status is at.found and job.queue == at.queue:
            continue
        txn.count(at.queue, at.found, -1)
        txn.count(job.queue, job.status, 1)
        if job.status in FINISHED:
            txn.ended.append(job.id)
        else:
            txn.work = True  # there is work, or a new time to wake for
    txn.db.executemany(sql.CHANGE, rows)


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
