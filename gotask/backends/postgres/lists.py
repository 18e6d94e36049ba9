"""Lists of jobs, newest first, one page at a time."""

from typing import Any, Final

from gotask.backends.cursors import seq_of
from gotask.backends.postgres import rows
from gotask.backends.postgres.sql import quoted
from gotask.model import Filter
from gotask.states import FINISHED, State

_FIELDS: Final = ", ".join(rows.COLUMNS)
_OFF: Final = "SELECT set_config(name, 'off', true) FROM unnest(%s) name"
#: off: a way that is taken after all looks so dear that it would be compiled first, for half a second; hence no jit
_WAYS: Final = ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin", "jit")


def page(schema: str, filter: Filter) -> tuple[tuple[Any, ...], ...]:
    """What to ask for one page and a job more: each a statement and its values, the page last.

    A page is read along an index in the order of the list, and ends when it is full, whatever the statistics say of the tables.
    What runs or has a key is little, and has an index of its own: it is read whole, and sorted. Of what waits in one queue the
    statistics may know that it is little.
    """
    conditions, values = _conditions(filter)
    most = filter.offset + filter.limit + 1
    parts, bound = [], list[Any]()
    for table, status in _places(filter):
        where = [*([f"status = '{status.value}'"] if status else []), *conditions]
        if table == "history":
            where.append(f"due_at > (SELECT forgotten_until FROM {quoted(schema)}.tended)")
        source = f"{quoted(schema)}.{table}{' WHERE ' if where else ''}{' AND '.join(where)}"
        few = "due_at" if filter.status is State.RUNNING else "unique_key" if filter.unique_key and table == "jobs" else None
        if few:
            source = f"(SELECT * FROM {source} ORDER BY {few} OFFSET 0) few"
        bound += [*values, most]
        parts.append(f"(SELECT {_FIELDS} FROM {source} ORDER BY seq DESC LIMIT %s)")
    statement = f"SELECT * FROM ({' UNION ALL '.join(parts)}) found ORDER BY seq DESC LIMIT %s OFFSET %s"
    ways = _WAYS if filter.status is State.PENDING and filter.queue else (*_WAYS, "enable_sort")
    return (_OFF, rows.texts(ways)), (statement, *bound, filter.limit + 1, filter.offset)


def _places(filter: Filter) -> list[tuple[str, State | None]]:
    """The tables to look into, and the status to name there: as a literal, by which an index is found."""
    if filter.status is not None:
        return [("history" if filter.status in FINISHED else "jobs", filter.status)]
    return [("jobs", None), *(("history", status) for status in State if status in FINISHED)]


def _conditions(filter: Filter) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for condition, value in (
        ("queue = %s", filter.queue),
        ("type = %s", filter.type),
        ("worker_id = %s", rows.escaped(filter.worker_id)),
        ("unique_key = %s", rows.escaped(filter.unique_key)),
        ("created_at >= %s", filter.created_after),
        ("created_at < %s", filter.created_before),
        ("seq < %s", None if filter.cursor is None else seq_of(filter.cursor)),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return conditions, values
