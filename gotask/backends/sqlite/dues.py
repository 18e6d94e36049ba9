"""What is due: wake, reap, expire, forget. One loop over one index, since a job has one time."""

from array import array
from typing import Any

import apsw

from gotask.backends import moves
from gotask.backends.sqlite import sql
from gotask.backends.sqlite.leases import settings
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.moves import Standing, write
from gotask.backends.sqlite.schema import PRUNED
from gotask.model import Tick
from gotask.states import ON_DUE

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
        if moves.is_due(at.job, txn.now, _dead_letters(txn, at)):
            at.place = 0
        done.promoted += verb == "promote"
        done.lapsed += verb == "lapse"
        done.expired += verb == "expire"
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


def _dead_letters(txn: Txn, at: Standing) -> str | None:
    """Where a job goes if its lapse ends it."""
    record = settings(txn.db, at.queue) if at.found is moves.RUNNING else None
    return record.dead_letter_queue if record is not None else None


def next_in(db: apsw.Connection, now: float) -> float | None:
    """Seconds until the next job is due; 0 if one is already."""
    row = db.execute(sql.NEXT_DUE).fetchone()
    return None if row is None else max(0.0, row[0] - now)


assert all(due.verb in {"promote", "lapse", "expire", "prune"} for due in ON_DUE.values())
