"""Accepting jobs: which are new, which stand already."""

from collections.abc import Sequence

import apsw

from gotask.backends import ids
from gotask.backends.fields import born, stands
from gotask.backends.sqlite import sql
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.schema import new_cold_row, new_hot_row, reader
from gotask.clock import from_epoch, to_epoch
from gotask.model import Enqueued, Job, NewJob
from gotask.states import ON_DUE, RULES, Event

read_job = reader(sql.JOB_COLUMNS)
_SLEEPS = RULES[Event.SNOOZE].to  # where a job for later waits
_WAITS = ON_DUE[_SLEEPS].to[0]


def accept(txn: Txn, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Store the new among the jobs; within the batch as between batches, the first of an id or unique key stands."""
    made = iter(ids.make(sum(not new.id for new in jobs)))
    named = tuple(new.id for new in jobs if new.id)
    stand = {job.id: job for job in map(read_job, txn.db.execute(sql.BY_ID, (apsw.carray(named),)))} if named else {}
    holders: dict[str, Job] = {}
    fresh: list[Job] = []
    answers = []
    for new in jobs:
        old = stand.get(new.id) if new.id else None
        if old is not None:
            answers.append(stands(new, old))
            continue
        holder = _holder(txn, new.unique_key, holders) if new.unique_key is not None else None
        if holder is not None:
            answers.append(Enqueued("duplicate", holder))
            continue
        job = _newborn(new, new.id or next(made), txn.now)
        stand[job.id] = job
        if job.unique_key is not None:
            holders[job.unique_key] = job
        fresh.append(job)
        answers.append(Enqueued("created", job))
    if fresh:
        _insert(txn, fresh)
    return answers


def _holder(txn: Txn, key: str, holders: dict[str, Job]) -> Job | None:
    """The live job that has a unique key."""
    if key not in holders:
        row = txn.db.execute(sql.BY_KEY, (key,)).fetchone()
        if row is None:
            return None
        holders[key] = read_job(row)
    return holders[key]


def _newborn(new: NewJob, id: str, now: float) -> Job:
    due = max(now + (new.delay or 0.0), to_epoch(new.scheduled_at) if new.scheduled_at is not None else 0.0)
    at = from_epoch(now)
    if due > now:
        return born(new, id, _SLEEPS, from_epoch(due), at)
    return born(new, id, _WAITS, new.expires_at, at)


def _insert(txn: Txn, fresh: list[Job]) -> None:
    last = txn.db.execute(sql.TAKE_PLACES, (len(fresh),)).get
    first = last - len(fresh) + 1
    txn.db.executemany(sql.INSERT_JOB, [(seq, seq, *new_hot_row(job)) for seq, job in enumerate(fresh, first)])
    txn.db.executemany(sql.INSERT_BODY, [(seq, *new_cold_row(job)) for seq, job in enumerate(fresh, first)])
    for job in fresh:
        txn.count(job.queue, job.status, 1)
    txn.work = True  # also for those that sleep: whoever keeps the time must know of an earlier one
