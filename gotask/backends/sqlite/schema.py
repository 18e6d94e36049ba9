"""The tables of the SQLite storage, derived from the fields of `Job`, and the functions between their rows and Structs.

A job lies in two rows with one `seq`: `jobs` holds what changes and what is searched, narrow so that a transition rewrites
little; `bodies` holds what never changes. The rare fields of both are NULL and cost a byte. Nothing here names a field but
to say that it is special: a field added to the Struct becomes a column, for which MIGRATIONS needs one line.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, get_origin

import msgspec
from msgspec import Raw
from msgspec.structs import fields

from gotask.backends.fields import BODY, KINDS, NAMES, argument, compiled
from gotask.clock import from_epoch
from gotask.model import Attempt, Job, Strategy
from gotask.states import LIVE, ON_DUE, RULES, Event, State

#: fields of the body that are searched, or needed to end a job: they live in `jobs`
HOT_BODY: Final = frozenset({"id", "queue", "priority", "expires_at", "unique_key"})
#: set once, when the job is accepted
BORN: Final = frozenset({"created_at"})

Row = tuple[Any, ...]
COLD: Final = tuple(name for name in NAMES if (name in BODY and name not in HOT_BODY) or name in BORN)
HOT: Final = tuple(name for name in NAMES if name not in COLD)
#: what enqueue writes; every other column of `jobs` starts at the Struct's default
NEW_HOT: Final = (*(name for name in HOT if name in BODY), "status", "due_at", "updated_at")

_AFFINITY: Final[dict[type, str]] = {int: "INTEGER", bool: "INTEGER", float: "REAL", datetime: "REAL", str: "TEXT", Raw: "BLOB"}


def affinity(name: str) -> str:
    kind = KINDS[name]
    if get_origin(kind) is not None:
        return "BLOB"  # a list or a dict, as JSON
    return next(word for base, word in _AFFINITY.items() if issubclass(kind, base))


def literal(value: object) -> str:
    """A value as SQL text; only for the constants of this package, never for input."""
    if value is None:
        return "NULL"
    return f"'{value}'" if isinstance(value, str) else str(int(value) if isinstance(value, bool) else value)


def states(of: Any) -> str:
    """States as the inside of an SQL `IN (...)`, in the order of their definition."""
    return ", ".join(literal(state.value) for state in State if state in of)


def unusual(column: str) -> str:
    """The condition of the index `rare`: plain comparisons, since an IN costs each update of a job half a microsecond."""
    return " AND ".join(f"{column} <> {literal(state.value)}" for state in USUAL)


def _column(name: str) -> str:
    default = next(field.default for field in fields(Job) if field.name == name)
    fixed = isinstance(default, bool | int | float)
    return f"{name} {affinity(name)}" + (f" NOT NULL DEFAULT {literal(default)}" if fixed else "")


#: off the usual way of a job: few, often listed, and an index of them costs that way nothing
USUAL: Final = (*RULES[Event.LEASE].sources, RULES[Event.LEASE].to, RULES[Event.ACK].to)
LEASED_FROM: Final = states(RULES[Event.LEASE].sources)
RUNNING: Final = RULES[Event.LEASE].to

TABLES: Final = (
    f"CREATE TABLE jobs (seq INTEGER PRIMARY KEY, place INTEGER NOT NULL, {', '.join(map(_column, HOT))})",
    f"CREATE TABLE bodies (seq INTEGER PRIMARY KEY, {', '.join(map(_column, COLD))})",
    "CREATE UNIQUE INDEX by_id ON jobs (id)",
    f"CREATE INDEX ready ON jobs (queue, priority DESC, place, due_at) WHERE status IN ({LEASED_FROM})",
    "CREATE INDEX due ON jobs (due_at) WHERE due_at IS NOT NULL",
    f"CREATE UNIQUE INDEX held_keys ON jobs (unique_key) WHERE unique_key IS NOT NULL AND status IN ({states(LIVE)})",
    f"CREATE INDEX rare ON jobs (status, seq) WHERE {unusual('status')}",
    # how many jobs each queue has in each state, kept by every transaction that changes one
    "CREATE TABLE counts (queue TEXT, status TEXT, n INTEGER NOT NULL, PRIMARY KEY (queue, status)) WITHOUT ROWID",
    # the sequences: `place` also numbers the rows, so that neither is ever reused; and the machine's boot they last rose in
    "CREATE TABLE numbers (one INTEGER PRIMARY KEY CHECK (one = 1), place INTEGER NOT NULL, lease INTEGER NOT NULL,"
    " boot TEXT NOT NULL)",
    "INSERT INTO numbers VALUES (1, 0, 0, '')",
    # per queue: jobs leased so far (for ageing) and the token bucket of its rate limit
    "CREATE TABLE lanes (queue TEXT PRIMARY KEY, leased INTEGER NOT NULL, tokens REAL, filled_at REAL) WITHOUT ROWID",
    "CREATE TABLE records (kind TEXT, name TEXT, version INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, name))"
    " WITHOUT ROWID",
)
#: statements that bring a file of version i to i + 1; an empty file is at 0. Append only: old files walk the whole way.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (TABLES,)
VERSION: Final = len(MIGRATIONS)

_attempts = msgspec.json.Decoder(list[Attempt])
_metadata = msgspec.json.Decoder(KINDS["metadata"])
to_json = msgspec.json.Encoder().encode
read_attempts = _attempts.decode

_SCOPE: Final[dict[str, Any]] = {
    "Job": Job,
    "Raw": Raw,
    "from_epoch": from_epoch,
    "STATES": {state.value: state for state in State},
    "STRATEGIES": {strategy.value: strategy for strategy in Strategy},
    "read_attempts": read_attempts,
    "read_metadata": _metadata.decode,
    "to_json": to_json,
}
_READ: Final[dict[Any, str]] = {datetime: "from_epoch({0})", Raw: "Raw({0})", Strategy: "STRATEGIES[{0}]", bool: "{0} == 1"}


def _reading(name: str) -> str:
    """The Python expression that makes a field from its column, which is a variable of the same name."""
    kind = KINDS[name]
    if kind is State:
        return f"STATES[{name}]"
    form = {"attempts": "read_attempts({0})", "metadata": "read_metadata({0})"}.get(name) or _READ.get(kind)
    if form is None:
        return name
    default = next(field.default for field in fields(Job) if field.name == name)
    return form.format(name) if default is not None else f"None if {name} is None else {form.format(name)}"


def _writing(name: str) -> str:
    """The Python expression that makes a column from the field of `job`."""
    kind = KINDS[name]
    form = "job.{0}.timestamp()" if kind is datetime else "to_json(job.{0})" if get_origin(kind) is not None else None
    if form is None:
        return f"job.{name}" if kind is not Strategy else f"None if job.{name} is None else job.{name}.value"
    return f"None if job.{name} is None else {form.format(name)}"


def reader(columns: tuple[str, ...], given: tuple[str, ...] = ()) -> Callable[..., Job]:
    """A function from a row of `columns`, and the fields `given` as arguments, to a Job.

    Columns that are no fields are skipped, fields that are neither have their defaults.
    """
    named = [*(name for name in columns if name in NAMES), *given]
    parts = [f"{name}={name if name in given else _reading(name)}" for name in named]
    if set(named) == set(NAMES):  # all there: by position, which is faster
        parts = [argument(name, name if name in given else _reading(name)) for name in NAMES]
    arguments = "".join(f", {name}" for name in given)
    return compiled(f"def made(row{arguments}):\n ({', '.join(columns)},) = row\n return Job({', '.join(parts)})", _SCOPE)


def writer(columns: tuple[str, ...]) -> Callable[[Job], Row]:
    """A function from a Job to the values of `columns`."""
    return compiled(f"def made(job):\n return ({', '.join(map(_writing, columns))},)", _SCOPE)


new_hot_row: Final = writer(NEW_HOT)
new_cold_row: Final = writer(COLD)


PRUNED: Final = frozenset(state for state, due in ON_DUE.items() if not due.to)
