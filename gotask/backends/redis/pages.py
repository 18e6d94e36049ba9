"""Lists of jobs, newest first, one page at a time; of several shards merged by when jobs were accepted."""

import base64
from collections.abc import Callable, Sequence
from datetime import datetime
from heapq import merge
from typing import Any, Final

from gotask.backends.redis import rows
from gotask.errors import InvalidInput
from gotask.model import Filter, Page

CURSOR_MAX: Final = 16_384  #: characters

Run = Callable[..., Any]  #: root, verb, arguments -> answer


def find(run: Run, roots: Sequence[str], filter: Filter) -> Page:
    """One page. A cursor is, per shard, the seq of its last job on the page before ('' if it had none yet)."""
    cursors = [""] * len(roots) if filter.cursor is None else _read_cursor(filter.cursor, len(roots))
    wanted = _wanted(filter)
    if len(roots) == 1:
        found = [(0, row) for row in _rows(run, roots[0], wanted, cursors[0], filter.offset, filter.limit + 1)]
    else:
        most = filter.offset + filter.limit + 1
        shards = [[(at, row) for row in _rows(run, root, wanted, cursors[at], 0, most)] for at, root in enumerate(roots)]
        cursors = [cursor or _top(found) for cursor, found in zip(cursors, shards, strict=True)]
        found = list(merge(*shards, key=_accepted, reverse=True))
        for at, row in found[: filter.offset]:
            cursors[at] = str(rows.seq_of(row))
        found = found[filter.offset :]
    page, more = found[: filter.limit], len(found) > filter.limit
    for at, row in page:
        cursors[at] = str(rows.seq_of(row))
    return Page([rows.read(row) for _, row in page], _write_cursor(cursors) if more else None)


def _top(found: list[tuple[int, rows.Flat]]) -> str:
    """The cursor of a shard that no job was taken from yet: above its newest, so that what arrives later stays out."""
    return str(rows.seq_of(found[0][1]) + 1) if found else "1"


def _accepted(one: tuple[int, rows.Flat]) -> tuple[datetime, str]:
    id, accepted, _ = rows.born_as(one[1])
    return accepted, id


def _rows(run: Run, root: str, wanted: Sequence[Any], cursor: str, skip: int, n: int) -> list[rows.Flat]:
    """Up to `n` rows of one shard; the script looks at so many jobs at a time."""
    found: list[rows.Flat] = []
    following: Any = cursor
    while True:
        following, skip, more = run(root, "page", *wanted, following, skip, n - len(found))
        found += more
        if not following or len(found) >= n:
            return found


def _wanted(filter: Filter) -> tuple[Any, ...]:
    return (
        filter.queue or "",
        filter.status.value if filter.status is not None else "",
        filter.type or "",
        filter.worker_id or "",
        filter.unique_key or "",
        "" if filter.created_after is None else rows.micros(filter.created_after),
        "" if filter.created_before is None else rows.micros(filter.created_before),
    )


def _write_cursor(cursors: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(f"s{','.join(cursors)}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str, shards: int) -> list[str]:
    try:
        text = base64.urlsafe_b64decode(cursor[:CURSOR_MAX].encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        parts = text[1:].split(",")
        if text[:1] != "s" or len(parts) != shards or not all(len(part) <= 16 and (part + "0").isdigit() for part in parts):
            raise ValueError
        if shards == 1 and not parts[0]:
            raise ValueError
        return parts
    except ValueError:
        raise InvalidInput(f"The cursor {cursor[:64]!r} is not one this storage gave; start again without it.") from None
