"""Where a page of jobs ends, for those stores that number jobs as they came: the number, in a form that nobody reckons with."""

import base64
from typing import Final

from gotask.errors import InvalidInput

SEQ_MAX: Final = 2**63 - 1


def cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(b"s%d" % seq).decode().rstrip("=")


def seq_of(cursor: str) -> int:
    """The number of the last job of the page before. Raises InvalidInput."""
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        if text[:1] != b"s" or not text[1:].isdigit() or len(text) > 20:
            raise ValueError
        return min(int(text[1:]), SEQ_MAX)
    except ValueError:
        raise InvalidInput(f"The cursor {cursor[:64]!r} is not one this storage gave; start again without it.") from None
