"""What people ask for: cancel, revive, delete, list."""

from collections.abc import Sequence
from typing import Any

import apsw

from gotask.backends import moves
from gotask.backends.cursors import cursor, seq_of
from gotask.backends.fields import check_by_hand
from gotask.backends.sqlite import sql
from gotask.backends.sqlite.dues import drop
from gotask.backends.sqlite.intake import read_job
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.moves import Standing, known, standing, write
from gotask.clock import to_epoch
from gotask.model import Filter, Job, Page
from gotask.states import RULES, Event, State

_RUNNING = RULES[Event.LEASE].to


def move(txn: Txn, ids: Sequence[str], event: Event, reason: str | None) -> list[bool]:
    """CANCEL or REVIVE each; False where RULES has no such way, or a revived job's unique key is taken."""
    check_by_hand(event)
    found = standing(txn.db, ids)
    answers, keys = [], set[str]()
    for id in ids:
        at = found.get(id)
        possible = at is not None and not at.moved and at.found in RULES[event].sources
        if possible and at is not None and event is Event.REVIVE:
            possible = _key_is_free(txn, at, keys)
        if possible and at is not None:
            if event is Event.CANCEL:
                moves.cancel(at.job, reason, txn.now)
                txn.node |= at.found is _RUNNING
            else:
                moves.revive(at.job, reason)
                at.place = 0
            at.moved = True
        answers.append(possible)
    moved = [at for at in found.values() if at.moved]
    if moved:
        write(txn, moved)
    return answers


def _key_is_free(txn: Txn, at: Standing, keys: set[str]) -> bool:
    key = at.job.unique_key
    if key is None:
        return True
    if key in keys or txn.db.execute(sql.KEY_HOLDER, (key,)).fetchone() is not None:
        return False
    keys.add(key)
    return True


def delete(txn: Txn, ids: Sequence[str]) -> list[bool]:
    """Delete what does not run."""
    asked = known(ids)
    rows = {row[1]: row for row in txn.db.execute(sql.DROPPABLE, (apsw.carray(asked),))} if asked else {}
    answers = []
    for id in ids:
        row = rows.pop(id, None)
        answers.append(row is not None)
        if row is not None:
            txn.count(row[2], State(row[3]), -1)
            drop(txn.db, [row[0]])
            txn.ended.append(id)
    return answers


def look_up(db: apsw.Connection, ids: Sequence[str]) -> list[Job | None]:
    asked = known(ids)
    found = {job.id: job for job in map(read_job, db.execute(sql.BY_ID, (apsw.carray(asked),)))} if asked else {}
    return [found.get(id) for id in ids]


def find(db: apsw.Connection, filter: Filter) -> Page:
    """One page, newest first. The cursor is the row number of the last job of the page before."""
    conditions, values = _conditions(filter)
    rows: list[Any] = db.execute(sql.page(conditions), (*values, filter.limit + 1, filter.offset)).fetchall()
    jobs = [read_job(row) for row in rows[: filter.limit]]
    more = len(rows) > filter.limit
    return Page(jobs, cursor(rows[filter.limit - 1][0]) if more else None)


def _conditions(filter: Filter) -> tuple[list[str], list[Any]]:
    conditions: list[str] = [] if filter.status is None else [sql.in_state(filter.status)]
    values: list[Any] = []
    for column, value in (
        ("j.queue = ?", filter.queue),
        ("b.type = ?", filter.type),
        ("j.worker_id = ?", filter.worker_id),
        ("j.unique_key = ?", filter.unique_key),
        ("b.created_at >= ?", None if filter.created_after is None else to_epoch(filter.created_after)),
        ("b.created_at < ?", None if filter.created_before is None else to_epoch(filter.created_before)),
        ("j.seq < ?", None if filter.cursor is None else seq_of(filter.cursor)),
    ):
        if value is not None:
            conditions.append(column)
            values.append(value)
    return conditions, values
