"""What is due: wake, reap, expire, forget. One loop over one index, since a job has one time."""

from array import array
from typing import Any

import apsw

from gotask.backends.sqlite import sql
from gotask.backends.sqlite.leases import settings
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.moves import Standing, bury, finish, note_attempt, queue_up, write
from gotask.backends.sqlite.schema import PRUNED
from gotask.clock import from_epoch
from gotask.model import CRASHES_MAX, Job, Tick
from gotask.states import ON_DUE, RULES, Event

_PRUNED = {state.value: state for state in PRUNED}
_STATUS, _QUEUE = sql.SETTLE_COLUMNS.index("status"), sql.SETTLE_COLUMNS.index("queue")


def do(txn: Txn, limit: int) -> Tick:
    """Move up to `limit` jobs whose time has come, the longest due first."""
    done = Tick()
    gone, moved = [], []
    rows: list[Any] = txn.db.execute(sql.DUE, (txn.now, limit)).fetchall()
    for row in rows:
        if row[_STATUS] in _PRUNED:
            gone.append(row[0])
            txn.count(row[_QUEUE], _PRUNED[row[_STATUS]], -1)
            continue
        at = Standing(row)
        moved.append(at)
        verb = ON_DUE[at.found].verb
        if verb == "promote":
            done.promoted += 1
            at.place = 0
            queue_up(at.job)
        elif verb == "lapse":
            done.lapsed += 1
            _lapse(txn, at)
        else:
            done.expired += 1
            finish(at.job, ON_DUE[at.found].to[0], txn.now)
    if moved:
        write(txn, moved)
    if gone:
        drop(txn.db, gone)
        txn.db.execute(sql.FORGET_COUNTS)
    done.pruned = len(gone)
    return done


def drop(db: apsw.Connection, seqs: list[int]) -> None:
    """Delete jobs whole."""
    rows = apsw.carray(array("q", seqs))
    db.execute(sql.DROP_JOBS, (rows,))
    db.execute(sql.DROP_BODIES, (rows,))


def _lapse(txn: Txn, at: Standing) -> None:
    """Its node is gone: try again, or end it if it was to stop or has done this too often."""
    job = at.job
    job.crashes += 1
    if job.cancel_requested:
        finish(job, RULES[Event.CANCEL].to, txn.now)
    elif job.crashes >= CRASHES_MAX:
        _poison(txn, job)
    else:
        note_attempt(job, "lapse", from_epoch(txn.now), None)
        job.progress, job.progress_note = 0.0, None
        job.reason = "its lease lapsed"
        at.place = 0
        queue_up(job)


def _poison(txn: Txn, job: Job) -> None:
    record = settings(txn.db, job.queue)
    bury(job, record.dead_letter_queue if record is not None else None)
    job.error = f"Its worker was lost {job.crashes} times while it ran."
    job.reason = "poison"
    finish(job, RULES[Event.BURY].to, txn.now)


def next_in(db: apsw.Connection, now: float) -> float | None:
    """Seconds until the next job is due; 0 if one is already."""
    row = db.execute(sql.NEXT_DUE).fetchone()
    return None if row is None else max(0.0, row[0] - now)


assert all(due.verb in {"promote", "lapse", "expire", "prune"} for due in ON_DUE.values())
