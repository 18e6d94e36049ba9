"""Jobs that are moved by gotask.backends.moves: as a transaction found them, and their way back into the tables."""

from collections.abc import Iterable
from typing import Any

import apsw

from gotask.backends.fields import is_name
from gotask.backends.sqlite import sql
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.schema import reader, writer
from gotask.clock import from_epoch
from gotask.states import FINISHED

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
    return tuple(id for id in ids if is_name(id))


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
