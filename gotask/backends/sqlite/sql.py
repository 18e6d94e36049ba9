"""Every statement of the SQLite storage. The words of states come from the tables in gotask.states, never from here.

A list of numbers or ids is bound as one array (`carray`), so that a batch is one statement. `:name` is bound by name.
"""

from typing import Final

from gotask.backends.sqlite.schema import COLD, HOT, LEASED_FROM, NEW_HOT, RUNNING, USUAL, literal, states, unusual
from gotask.states import LIVE, ON_DUE, RULES, Event, State

_SETTLED_FROM: Final = states(RULES[Event.ACK].sources)
_FIELDS: Final = ", ".join([*(f"j.{name}" for name in HOT), *(f"b.{name}" for name in COLD)])
#: a whole job
JOB_COLUMNS: Final = ("seq", "place", *HOT, *COLD)
_FROM: Final = "FROM jobs j JOIN bodies b ON b.seq = j.seq"
_JOB: Final = f"SELECT j.seq, j.place, {_FIELDS} {_FROM}"

#: fields that a lease sets, so that reading them would be waste
LEASE_SETS: Final = ("status", "lease", "worker_id", "due_at", "updated_at", "started_at", "reason", "queue")
LEASE_COLUMNS: Final = ("seq", "place", *(name for name in HOT if name not in LEASE_SETS), *COLD)
_LEASE_FIELDS: Final = ", ".join(f"{'b' if name in COLD else 'j'}.{name}" for name in LEASE_COLUMNS)

# enqueue
INSERT_JOB: Final = f"INSERT INTO jobs (seq, place, {', '.join(NEW_HOT)}) VALUES (?, ?{', ?' * len(NEW_HOT)})"
INSERT_BODY: Final = f"INSERT INTO bodies (seq, {', '.join(COLD)}) VALUES (?{', ?' * len(COLD)})"
TAKE_PLACES: Final = "UPDATE numbers SET place = place + ? RETURNING place"
BY_ID: Final = f"{_JOB} WHERE j.id IN (SELECT value FROM carray(?))"
BY_KEY: Final = f"{_JOB} WHERE j.unique_key = ? AND j.status IN ({states(LIVE)})"
COUNT: Final = (
    "INSERT INTO counts (queue, status, n) VALUES (?, ?, ?) ON CONFLICT (queue, status) DO UPDATE SET n = n + excluded.n"
)

# lease
READY: Final = RULES[Event.LEASE].sources[0]
BOOT: Final = "SELECT boot FROM numbers"
#: a lease is not synced by itself, so a loss of power may take its number back: after one, go on well above it
SKIP_LEASES: Final = "UPDATE numbers SET lease = lease + (boot <> '') * 1000000, boot = ?"
NEXT_LEASE: Final = "UPDATE numbers SET lease = lease + 1 RETURNING lease"
N_OF: Final = "SELECT n FROM counts WHERE queue = ? AND status = ?"
LANE: Final = "SELECT leased, tokens, filled_at FROM lanes WHERE queue = ?"
SET_LANE: Final = (
    "INSERT INTO lanes (queue, leased, tokens, filled_at) VALUES (?1, ?2, ?3, ?4)"
    " ON CONFLICT (queue) DO UPDATE SET leased = ?2, tokens = ?3, filled_at = ?4"
)
_READY: Final = f"j.status IN ({LEASED_FROM}) AND j.queue = ?1 AND (j.due_at IS NULL OR j.due_at > ?2)"
FIRST: Final = f"SELECT {_LEASE_FIELDS} {_FROM} WHERE {_READY} ORDER BY j.priority DESC, j.place LIMIT ?3"
PRIORITY_RANGE: Final = (
    f"SELECT (SELECT priority FROM jobs j WHERE status IN ({LEASED_FROM}) AND queue = ?1 ORDER BY priority LIMIT 1),"
    f" (SELECT priority FROM jobs j WHERE status IN ({LEASED_FROM}) AND queue = ?1 ORDER BY priority DESC LIMIT 1)"
)
OLDEST_OF: Final = (
    f"SELECT {_LEASE_FIELDS} {_FROM} WHERE {_READY} AND j.priority = ?3 AND j.place > ?4 ORDER BY j.place LIMIT ?5"
)
_LEASE: Final = (
    f"UPDATE jobs SET status = {literal(RUNNING.value)}, lease = ?1, worker_id = ?2, due_at = ?3, started_at = ?4,"
    f" updated_at = ?4, reason = NULL WHERE status IN ({LEASED_FROM})"
)
LEASE_RANGE: Final = f"{_LEASE} AND seq BETWEEN ?5 AND ?6"
LEASE_SOME: Final = f"{_LEASE} AND seq IN (SELECT value FROM carray(?5))"

# settle: an ack alike for a whole group, then one job at a time for what differs
_ACK: Final = (
    f"UPDATE jobs SET status = {literal(RULES[Event.ACK].to.value)}, completed_at = ?1, updated_at = ?1, due_at = ?2,"
    f" result = ?3, error = NULL, reason = NULL WHERE status IN ({_SETTLED_FROM}) AND lease = ?4"
)
ACK_RANGE: Final = f"{_ACK} AND seq BETWEEN ?5 AND ?6"
ACK_SOME: Final = f"{_ACK} AND seq IN (SELECT value FROM carray(?5))"
ACK_ONE: Final = f"{_ACK} AND seq = ?5"
SETTLE_COLUMNS: Final = (
    "seq", "place", "id", "status", "lease", "queue", "retry_count", "crashes", "worker_id", "started_at", "expires_at",
    "origin_queue", "cancel_requested", "attempts", "error", "reason", "progress", "progress_note", "result", "completed_at",
    "unique_key", "due_at",
)  # fmt: skip
ENDING: Final = f"SELECT {', '.join(SETTLE_COLUMNS)} FROM jobs WHERE id IN (SELECT value FROM carray(?))"
#: the fields that a move of one job may change; guarded by what was read in the same transaction
CHANGED: Final = (
    "status", "place", "queue", "retry_count", "crashes", "worker_id", "started_at", "completed_at", "expires_at", "due_at",
    "origin_queue", "cancel_requested", "attempts", "error", "reason", "progress", "progress_note", "result", "updated_at",
)  # fmt: skip
CHANGE: Final = f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in CHANGED)} WHERE seq = ? AND status = ? AND lease = ?"

# extend
HELD: Final = "SELECT id, seq, status, lease, cancel_requested FROM jobs WHERE id IN (SELECT value FROM carray(?))"
EXTEND: Final = f"UPDATE jobs SET due_at = ?1 WHERE status IN ({_SETTLED_FROM}) AND seq IN (SELECT value FROM carray(?2))"
PROGRESS: Final = (
    "UPDATE jobs SET progress = coalesce(?1, progress), progress_note = coalesce(?2, progress_note), updated_at = ?3"
    " WHERE seq = ?4"
)

# tick
DUE: Final = f"SELECT {', '.join(SETTLE_COLUMNS)} FROM jobs WHERE due_at <= ?1 ORDER BY due_at, seq LIMIT ?2"
NEXT_DUE: Final = "SELECT due_at FROM jobs WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1"
DROP_JOBS: Final = "DELETE FROM jobs WHERE seq IN (SELECT value FROM carray(?))"
DROP_BODIES: Final = "DELETE FROM bodies WHERE seq IN (SELECT value FROM carray(?))"
FORGET_COUNTS: Final = "DELETE FROM counts WHERE n = 0"

# by hand
KEY_HOLDER: Final = f"SELECT 1 FROM jobs WHERE unique_key = ? AND status IN ({states(LIVE)})"
COUNTS: Final = "SELECT queue, status, n FROM counts WHERE n <> 0"
WAITING: Final = f"SELECT 1 FROM counts WHERE queue = ? AND n > 0 AND status IN ({LEASED_FROM})"
_DROPPABLE: Final = frozenset(State) - {state for state, due in ON_DUE.items() if due.verb == "lapse"}
DROPPABLE: Final = (
    f"SELECT seq, id, queue, status FROM jobs WHERE id IN (SELECT value FROM carray(?)) AND status IN ({states(_DROPPABLE)})"
)

# records
GET_RECORD: Final = "SELECT version, body FROM records WHERE kind = ? AND name = ?"
ALL_RECORDS: Final = "SELECT version, body FROM records WHERE kind = ? ORDER BY name"
PUT_RECORD: Final = (
    "INSERT INTO records (kind, name, version, body) VALUES (?1, ?2, ?3, ?4)"
    " ON CONFLICT (kind, name) DO UPDATE SET version = ?3, body = ?4"
)
DROP_RECORD: Final = "DELETE FROM records WHERE kind = ? AND name = ?"


def in_state(state: State) -> str:
    """The condition that a job is in `state`, in the form that finds the fewest jobs by an index.

    The running are early in the index of due times, and counted, so a look from its start ends at the last of them.
    """
    word = literal(state.value)
    if state not in USUAL:
        return f"j.status = {word} AND {unusual('j.status')}"
    if state is RUNNING:
        running = f"SELECT seq FROM jobs INDEXED BY due WHERE due_at IS NOT NULL AND status = {word} ORDER BY due_at"
        return f"j.seq IN ({running} LIMIT (SELECT coalesce(sum(n), 0) FROM counts WHERE status = {word}))"
    return f"j.status = {word}"


def page(conditions: list[str]) -> str:
    """The statement of one page: `conditions` are SQL with `?`, then come limit and offset."""
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"{_JOB}{where} ORDER BY j.seq DESC LIMIT ? OFFSET ?"
