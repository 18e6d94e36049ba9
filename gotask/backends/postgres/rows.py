"""Between Structs and rows: columns of a job, arrays in PostgreSQL's binary form, and changes as JSON.

Nothing here names a field but to say that it is special. What a client may say of a job and no statement needs lies in one
column, `more`, so that a field added to the body is a field here without a migration.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from struct import pack, unpack
from typing import Any, ClassVar, Final

import msgspec
import psycopg
from msgspec import Raw
from psycopg import adapt
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format

from gotask.backends.fields import BODY, KINDS, NAMES, argument, compiled
from gotask.model import Attempt, Job, NewJob, Queue
from gotask.states import State

Row = tuple[Any, ...]

#: fields of the body with a column of their own, because a statement needs them
APART: Final = frozenset({"id", "type", "queue", "priority", "payload", "expires_at", "unique_key"})
MORE: Final = tuple(name for name in BODY if name not in APART)
More: Final = msgspec.defstruct("More", [(name, KINDS[name] | None, None) for name in MORE], omit_defaults=True)
#: the columns of a job as they are read: `more` stands for all that lies in it
COLUMNS: Final = ("seq", "place", *(name for name in NAMES if name not in MORE), "more")
#: what is read of a job that is to be moved: the rest never changes
UNMOVED: Final = frozenset({"payload", "type", "created_at", "more", "priority"})
MOVING: Final = tuple(name for name in COLUMNS if name not in UNMOVED)
#: what a move may change
CHANGED: Final = tuple(name for name in MOVING if name not in ("seq", "place", "id", "lease", "unique_key"))

#: free text may have any character, and PostgreSQL keeps no NUL
FREE: Final = frozenset({"unique_key", "worker_id", "reason", "error", "progress_note"})
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\0": "\\0"})


def escaped(text: str | None) -> str | None:
    return text if text is None or ("\\" not in text and "\0" not in text) else text.translate(_ESCAPES)


def plain(text: str | None) -> str | None:
    if text is None or "\\" not in text:
        return text
    return "\\".join(part.replace("\\0", "\0") for part in text.split("\\\\"))


# times

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL
_FIRST, _LAST = -(2**63), 2**63 - 1
_MICROSECOND: Final = timedelta(microseconds=1)


class MomentLoader(adapt.Loader):
    """A timestamptz as a UTC datetime, whatever time zone the session has."""

    format = Format.BINARY

    def load(self, data: Any) -> datetime | None:
        (micros,) = unpack("!q", data)
        return None if micros in (_FIRST, _LAST) else _EPOCH + timedelta(microseconds=micros)


# arrays

_TEXT, _INT2, _INT4, _INT8, _FLOAT8, _BYTEA, _MOMENT = 25, 21, 23, 20, 701, 17, 1184
_ARRAY_OF: Final = {_TEXT: 1009, _INT2: 1005, _INT4: 1007, _INT8: 1016, _FLOAT8: 1022, _BYTEA: 1001, _MOMENT: 1185}


class Array:
    """Values of one type, as PostgreSQL's binary form of an array."""

    __slots__ = ("data",)
    OID: ClassVar[int] = 0  #: of an element

    def __init__(self, parts: Sequence[bytes | None]) -> None:
        nothing = b"\xff\xff\xff\xff"  # the length of NULL
        head = pack("!iiiii", 1, 1, self.OID, len(parts), 1) if parts else pack("!iii", 0, 0, self.OID)
        self.data = head + b"".join([nothing if part is None else pack("!i", len(part)) + part for part in parts])


#: psycopg finds out how to send a value by its class, so each type of element has one
_KINDS: Final[dict[int, type[Array]]] = {oid: type(f"Array{oid}", (Array,), {"__slots__": (), "OID": oid}) for oid in _ARRAY_OF}


def _array(oid: int, values: Iterable[Any], encode: Callable[[Any], bytes]) -> Array:
    return _KINDS[oid]([None if value is None else encode(value) for value in values])


def _fixed(oid: int, size: int, code: str, values: Sequence[Any]) -> Array:
    """An array of numbers without NULL, packed in one go."""
    made: Array = _KINDS[oid](())
    if values:
        body = pack("!" + f"i{code}" * len(values), *chain.from_iterable((size, value) for value in values))
        made.data = pack("!iiiii", 1, 0, oid, len(values), 1) + body
    return made


def texts(values: Iterable[str | None]) -> Array:
    return _array(_TEXT, values, str.encode)


def blobs(values: Iterable[Any]) -> Array:
    return _array(_BYTEA, values, bytes)


def shorts(values: Sequence[int]) -> Array:
    return _fixed(_INT2, 2, "h", values)


def ints(values: Sequence[int]) -> Array:
    return _fixed(_INT4, 4, "i", values)


def longs(values: Sequence[int]) -> Array:
    return _fixed(_INT8, 8, "q", values)


def floats(values: Sequence[float | None]) -> Array:
    return _array(_FLOAT8, values, lambda value: pack("!d", value))


def moments(values: Sequence[datetime | None]) -> Array:
    return _array(_MOMENT, values, lambda value: pack("!q", (value - _EPOCH) // _MICROSECOND))


def any_of(array: Callable[[Sequence[Any]], Array], values: Sequence[Any]) -> Array | None:
    """The array, or None if there is nothing in it but None."""
    return None if values.count(None) == len(values) else array(values)


class _ArrayDumper(adapt.Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


def adapters() -> AdaptersMap:
    """How values travel: arrays of ours, UTC times."""
    made = AdaptersMap(psycopg.adapters)
    register(made)
    return made


def register(made: AdaptersMap) -> None:
    for element, kind in _KINDS.items():
        made.register_dumper(kind, type(f"Dumper{element}", (_ArrayDumper,), {"oid": _ARRAY_OF[element]}))
    made.register_loader("timestamptz", MomentLoader)


# jobs

_more = msgspec.json.Decoder(More)
to_json: Final = msgspec.json.Encoder().encode


def add_more(job: Job, text: str) -> Job:
    found = _more.decode(text)
    for name in MORE:
        setattr(job, name, getattr(found, name))
    return job


_SCOPE: Final[dict[str, Any]] = {
    "Job": Job, "Raw": Raw, "plain": plain, "escaped": escaped, "add_more": add_more, "to_json": to_json, "More": More,
    "STATES": {state.value: state for state in State}, "read_attempts": msgspec.json.Decoder(list[Attempt]).decode,
}  # fmt: skip


def _reading(name: str) -> str:
    """The Python expression that makes a field from its column, which is a variable of the same name."""
    if name == "attempts":
        return "None if attempts is None else read_attempts(attempts)"
    form = {State: "STATES[{0}]", Raw: "{0} if {0} is None else Raw({0})"}.get(KINDS[name])
    return (form or ("plain({0})" if name in FREE else "{0}")).format(name)


def _writing(name: str) -> str:
    """The Python expression that makes the JSON of a column from the field of `job`."""
    if name == "attempts":
        return "None if job.attempts is None else to_json(job.attempts).decode()"
    form = {Raw: "None if job.{0} is None else '\\\\x' + bytes(job.{0}).hex()"}.get(KINDS[name])
    return (form or ("escaped(job.{0})" if name in FREE else "job.{0}")).format(name)


def reader(columns: Sequence[str]) -> Callable[[Row], Job]:
    """A function from a row that begins with `columns` to a Job; fields without a column have their defaults."""
    parts = [f"{name}={_reading(name)}" for name in columns if name in NAMES]
    if set(NAMES) <= {*columns, *MORE}:  # by position, which is faster
        parts = [argument(name, "None" if name in MORE else _reading(name)) for name in NAMES]
    end = "job if more is None else add_more(job, more)" if "more" in columns else "job"
    source = f"def made(row):\n ({', '.join(columns)}, *_) = row\n job = Job({', '.join(parts)})\n return {end}"
    return compiled(source, _SCOPE)


def _change() -> Callable[[Job, int, int], dict[str, Any]]:
    pairs = ", ".join(f"'{name}': {_writing(name)}" for name in CHANGED)
    return compiled(f"def made(job, seq, place):\n return {{'seq': seq, 'place': place, {pairs}}}", _SCOPE)


def _told() -> Callable[[NewJob], str | None]:
    nothing = " and ".join(f"new.{name} is None" for name in MORE)
    values = ", ".join(f"new.{name}" for name in MORE)
    return compiled(f"def made(new):\n return None if {nothing} else to_json(More({values})).decode()", _SCOPE)


read_job: Final = reader(COLUMNS)
read_moving: Final = reader(MOVING)
change: Final = _change()
more_of: Final = _told()


read_queue: Final = msgspec.json.Decoder(Queue).decode
