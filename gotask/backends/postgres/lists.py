"""Lists of jobs, newest first, one page at a time."""

import base64
from typing import Any

from gotask.backends.postgres import rows
from gotask.backends.postgres.sql import quoted
from gotask.errors import InvalidInput
from gotask.model import Filter
from gotask.states import FINISHED

_FIELDS = ", ".join(rows.COLUMNS)
_SEQ_MAX = 2**63 - 1


def page(schema: str, filter: Filter) -> tuple[str, list[Any]]:
    """The statement of one page and a job more, and its values."""
    conditions, values = _conditions(filter)
    most = filter.offset + filter.limit + 1
    parts, bound = [], list[Any]()
    for table in _tables(filter):
        remembered = f"due_at > (SELECT forgotten_until FROM {quoted(schema)}.tended)"
        where = [*conditions, *([remembered] if table == "history" else [])]
        bound += [*values, most]
        parts.append(
            f"(SELECT {_FIELDS} FROM {quoted(schema)}.{table}{' WHERE ' if where else ''}{' AND '.join(where)}"
            " ORDER BY seq DESC LIMIT %s)"
        )
    statement = f"SELECT * FROM ({' UNION ALL '.join(parts)}) found ORDER BY seq DESC LIMIT %s OFFSET %s"
    return statement, [*bound, filter.limit + 1, filter.offset]


def _tables(filter: Filter) -> list[str]:
    if filter.status is None:
        return ["jobs", "history"]
    return ["history"] if filter.status in FINISHED else ["jobs"]


def _conditions(filter: Filter) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for condition, value in (
        ("status = %s", None if filter.status is None else filter.status.value),
        ("queue = %s", filter.queue),
        ("type = %s", filter.type),
        ("worker_id = %s", rows.escaped(filter.worker_id)),
        ("unique_key = %s", rows.escaped(filter.unique_key)),
        ("created_at >= %s", filter.created_after),
        ("created_at < %s", filter.created_before),
        ("seq < %s", None if filter.cursor is None else _seq(filter.cursor)),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return conditions, values


def cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(b"s%d" % seq).decode().rstrip("=")


def _seq(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        if text[:1] != b"s" or not text[1:].isdigit() or len(text) > 20:
            raise ValueError
        return min(int(text[1:]), _SEQ_MAX)
    except ValueError:
        raise InvalidInput(f"The cursor {cursor[:64]!r} is not one this storage gave; start again without it.") from None
