"""Leasing and holding on: who may have which jobs now."""

from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import floor
from typing import Any, Final

import apsw
import msgspec

from gotask.backends.sqlite import sql
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.moves import known
from gotask.backends.sqlite.schema import RUNNING, reader
from gotask.clock import from_epoch
from gotask.errors import BackendDown
from gotask.model import Beat, Held, Job, Queue
from gotask.policy import AGEING

#: the jobs this process leased: id -> (seq, queue, lease), which spares their settling a look-up; a cache, never the truth
Memo = dict[str, tuple[int, str, int]]
MEMO_MAX: Final = 100_000

_GIVEN: Final = sql.LEASE_SETS
_leased = reader(sql.LEASE_COLUMNS, given=_GIVEN)
_PRIORITY: Final = sql.LEASE_COLUMNS.index("priority")
Row = tuple[Any, ...]


@lru_cache(maxsize=1024)
def _decoded(body: bytes) -> Queue:
    return msgspec.json.decode(body, type=Queue)


def settings(db: apsw.Connection, queue: str) -> Queue | None:
    """The record of a queue, if somebody made one."""
    row = db.execute(sql.GET_RECORD, (Queue.KIND, queue)).fetchone()
    return None if row is None else _decoded(row[1])


def lease(txn: Txn, wants: Mapping[str, int], owner: str, lease_s: float) -> list[tuple[int, Job]]:
    """Up to wants[queue] jobs of each queue with their row numbers, under one new lease number."""
    number = 0
    leased: list[tuple[int, Job]] = []
    now, due = from_epoch(txn.now), from_epoch(txn.now + lease_s)
    for queue, want in wants.items():
        lane = _Lane(txn, queue)
        rows = _pick(txn, queue, lane.allows(want), lane.leased)
        if not rows:
            continue
        if not number:
            number = txn.db.execute(sql.NEXT_LEASE).get
        _take(txn, rows, (number, owner, txn.now + lease_s, txn.now))
        lane.took(len(rows))
        txn.count(queue, sql.READY, -len(rows))
        txn.count(queue, RUNNING, len(rows))
        leased += [(row[0], _leased(row, RUNNING, number, owner, due, now, now, None, queue)) for row in rows]
    return leased


class _Lane:
    """What a queue's record and its past allow it now."""

    def __init__(self, txn: Txn, queue: str) -> None:
        self._txn, self._queue = txn, queue
        self._record = settings(txn.db, queue)
        row = txn.db.execute(sql.LANE, (queue,)).fetchone()
        self.leased: int = row[0] if row is not None else 0
        self._tokens: float | None = row[1] if row is not None else None
        self._filled_at: float | None = row[2] if row is not None else None

    def allows(self, want: int) -> int:
        record = self._record
        if record is None:
            return want
        if record.paused:
            return 0
        if record.max_workers:
            row = self._txn.db.execute(sql.N_OF, (self._queue, RUNNING.value)).fetchone()
            want = min(want, record.max_workers - (row[0] if row else 0))
        if record.rate_limit:
            want = min(want, floor(self._fill(record.rate_limit) + 1e-9))
        return want

    def _fill(self, rate: float) -> float:
        """A token bucket: it holds a second's worth, and at least one start."""
        burst = max(1.0, rate)
        if self._tokens is None or self._filled_at is None:
            self._tokens = burst
        elif self._filled_at > self._txn.now:  # the clock stepped back: go on from here, or nothing starts until it is there
            self._store(0, self._tokens, self._txn.now)
        else:
            self._tokens = min(burst, self._tokens + (self._txn.now - self._filled_at) * rate)
        self._filled_at = self._txn.now
        return self._tokens

    def took(self, n: int) -> None:
        if self._tokens is not None and self._record is not None and self._record.rate_limit:
            self._tokens -= n
        else:
            self._tokens = self._filled_at = None  # a limit set later starts with a full bucket
        self._store(n, self._tokens, self._filled_at)

    def _store(self, n: int, tokens: float | None, filled_at: float | None) -> None:
        self._txn.db.execute(sql.SET_LANE, (self._queue, self.leased + n, tokens, filled_at))


def _pick(txn: Txn, queue: str, n: int, leased: int) -> list[Row]:
    """The next `n` rows of a queue in order; those whose turn of ageing falls among them go to the oldest of the rest."""
    if n <= 0:
        return []
    aged = (leased + n) // AGEING - leased // AGEING
    if aged:
        ends: list[Any] = txn.db.execute(sql.PRIORITY_RANGE, (queue,)).fetchall()
        lowest, highest = ends[0]
        if lowest == highest:  # the first are the oldest
            aged = 0
    first: list[Row] = txn.db.execute(sql.FIRST, (queue, txn.now, n - aged)).fetchall() if n > aged else []
    if not aged or len(first) < n - aged:
        return first
    last_of = {row[_PRIORITY]: row[1] for row in first}  # within one priority, what was picked is the head
    rest: list[Row] = []
    for priority in range(lowest, highest + 1):
        rest += txn.db.execute(sql.OLDEST_OF, (queue, txn.now, priority, last_of.get(priority, 0), aged)).fetchall()
    rest.sort(key=lambda row: row[1])
    return sorted(first + rest[:aged], key=lambda row: (-row[_PRIORITY], row[1]))


def _take(txn: Txn, rows: list[Row], values: tuple[int, str, float, float]) -> None:
    seqs = [row[0] for row in rows]
    statement, where = some(seqs, sql.LEASE_RANGE, sql.LEASE_SOME)
    txn.db.execute(statement, (*values, *where))
    if txn.db.changes() != len(rows):
        raise BackendDown("The storage's index disagrees with its table; run 'PRAGMA integrity_check' on it.")


def some(seqs: list[int], by_range: str, by_list: str) -> tuple[str, tuple[Any, ...]]:
    """The form of a statement for distinct row numbers, and their binding: a run of them needs no list."""
    first, last = min(seqs), max(seqs)
    if last - first + 1 == len(seqs):
        return by_range, (first, last)
    return by_list, (apsw.carray(array("q", seqs)),)


def extend(txn: Txn, beats: Sequence[Beat], lease_s: float) -> list[Held]:
    """Push the ends of leases out; progress goes with it."""
    asked = known(beat.id for beat in beats)
    found = {row[0]: row[1:] for row in txn.db.execute(sql.HELD, (apsw.carray(asked),))} if asked else {}
    held, progress, answers = [], [], []
    for beat in beats:
        row = found.get(beat.id)
        if row is None or row[1] != RUNNING.value or row[2] != beat.lease:
            answers.append(Held.LOST)
            continue
        held.append(row[0])
        if beat.progress is not None or beat.note is not None:
            progress.append((beat.progress, beat.note, txn.now, row[0]))
        answers.append(Held.CANCEL if row[3] else Held.HELD)
    if held:
        txn.db.execute(sql.EXTEND, (txn.now + lease_s, apsw.carray(array("q", held))))
    if progress:
        txn.db.executemany(sql.PROGRESS, progress)
    return answers
