"""Between Structs and the flat lists that redis.lua takes and answers.

A job is answered as id, at, type, payload, more, due, then field, value, field, value ... of its hash. Times are whole
microseconds. Nothing here names a field but to say that it is special.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, get_origin

import msgspec
from msgspec import Raw

from gotask.backends.fields import BODY, KINDS, NAMES, born, compiled, cut, same_body
from gotask.backends.redis.script import MICROSECONDS
from gotask.clock import from_epoch, to_epoch
from gotask.model import Attempt, Beat, Enqueued, Job, NewJob, Settlement, Tick
from gotask.states import ON_DUE, RULES, Event, State

#: fields of the body that the script needs, or that have a place of their own in a row
APART: Final = frozenset({"id", "type", "queue", "priority", "payload", "expires_at", "unique_key"})
#: the other fields of the body: one JSON object, `more`, that the script never looks into
MORE: Final = tuple(name for name in BODY if name not in APART)
More: Final = msgspec.defstruct("More", [(name, KINDS[name] | None, None) for name in MORE], omit_defaults=True)
_more = msgspec.json.Decoder(More)
_RUNNING: Final = RULES[Event.LEASE].to
_SLEEPS: Final = RULES[Event.SNOOZE].to  # where a job for later waits
_WAITS: Final = ON_DUE[_SLEEPS].to[0]

Flat = list[Any]  #: what hiredis makes of an answer: bytes, whole numbers, and lists of them


def micros(moment: datetime) -> int:
    return round(to_epoch(moment) * MICROSECONDS)


def micros_of(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def moment(text: bytes) -> datetime:
    return from_epoch(int(text) / MICROSECONDS)


def attempts(text: bytes) -> list[Attempt]:
    found = msgspec.json.decode(text, type=list[tuple[str | None, str | None, str | None, str, str | None]])
    return [
        Attempt(worker, started and moment(started.encode()), ended and moment(ended.encode()), outcome, error)  # type: ignore[arg-type]
        for worker, started, ended, outcome, error in found
    ]


def _reader(kind: Any) -> Callable[[bytes], Any]:
    """How the text of a field becomes its value."""
    if get_origin(kind) is list:
        return attempts
    simple: dict[Any, Callable[[bytes], Any]] = {datetime: moment, Raw: Raw, bool: lambda text: text == b"1"}
    if kind in simple:
        return simple[kind]
    if kind is State:
        return {state.value.encode(): state for state in State}.__getitem__
    return next((base for base in (int, float) if issubclass(kind, base)), bytes.decode)


#: field of the hash -> its name and how it is read
_FIELDS: Final = {
    name.encode(): (name, _reader(KINDS[name])) for name in NAMES if get_origin(KINDS[name]) is not dict and name not in MORE
}


def read(row: Flat) -> Job:
    """A row as a Job."""
    created = moment(row[1])
    job = Job(id=row[0].decode(), type=row[2].decode(), payload=Raw(row[3]), created_at=created, updated_at=created)
    if row[5]:
        job.due_at = from_epoch(float(row[5]) / MICROSECONDS)
    for at in range(6, len(row), 2):
        field = row[at]
        found = _FIELDS.get(field)
        if found is not None:  # else what only the script needs, or a newer version
            name, convert = found
            setattr(job, name, convert(row[at + 1]))
    for latest in (job.started_at, job.completed_at):
        if latest is not None and latest > job.updated_at:  # type: ignore[operator]
            job.updated_at = latest
    if row[4]:
        more = _more.decode(row[4])
        for name in MORE:
            setattr(job, name, getattr(more, name))
    return job


def seq_of(row: Flat) -> int:
    return next(int(row[at + 1]) for at in range(6, len(row), 2) if row[at] == b"seq")


def read_leased(answer: Flat, owner: str) -> list[Job]:
    """The answer of `lease`: rows as they were before it, with what it changed."""
    if not answer:
        return []
    now, lease = moment(answer[0]), int(answer[1])
    jobs = []
    for row in answer[2:]:
        job = read(row)
        job.status, job.lease, job.worker_id = _RUNNING, lease, owner
        job.started_at = job.updated_at = now
        job.reason = None
        jobs.append(job)
    return jobs


def read_enqueued(answer: Any, id: str, new: NewJob) -> Enqueued:
    """The answer to one enqueue: when it was created, or the row of the job that stands."""
    if isinstance(answer, list):
        stands = read(answer)
        return Enqueued("duplicate" if stands.id != id or same_body(new, stands) else "conflict", stands)
    now = int(answer) / MICROSECONDS
    due = max(now + (new.delay or 0.0), to_epoch(new.scheduled_at) if new.scheduled_at is not None else 0.0)
    if due > now:
        return Enqueued("created", born(new, id, _SLEEPS, from_epoch(due), from_epoch(now)))
    return Enqueued("created", born(new, id, _WAITS, new.expires_at, from_epoch(now)))


def read_tick(answer: Flat) -> Tick:
    """The answer of `tick`: pairs of a word and a number, among them when the next is due, in microseconds."""
    told = [(answer[at].decode(), int(answer[at + 1])) for at in range(0, len(answer), 2)]
    done = dict(told)
    following = [wait / MICROSECONDS for word, wait in told if word == "next"]
    return Tick(
        done.get("promote", 0), done.get("lapse", 0), done.get("expire", 0), done.get("prune", 0), min(following, default=None)
    )


def _told() -> Callable[[NewJob], bytes]:
    nothing = " and ".join(f"new.{name} is None" for name in MORE)
    values = ", ".join(f"new.{name}" for name in MORE)
    source = f"def made(new):\n return b'' if {nothing} else encode(More({values}))"
    return compiled(source, {"More": More, "encode": msgspec.json.encode})


more_of: Final = _told()


def enqueue_arguments(id: str, new: NewJob) -> Flat:
    flat: Flat = [id, new.queue, new.priority, new.type, bytes(new.payload), more_of(new), 0]
    if new.delay is not None:
        flat += ("delay", micros_of(new.delay))
    if new.scheduled_at is not None:
        flat += ("scheduled_at", micros(new.scheduled_at))
    if new.expires_at is not None:
        flat += ("expires_at", micros(new.expires_at))
    if new.unique_key is not None:
        flat += ("unique_key", new.unique_key)
    flat[6] = (len(flat) - 7) // 2
    return flat


def settle_arguments(one: Settlement) -> Flat:
    flat: Flat = [one.id, one.lease, one.event.value, 0]
    if one.due_in is not None:
        flat += ("due_in", micros_of(one.due_in))
    if one.result is not None:
        flat += ("result", one.result)
    if one.error is not None:
        flat += ("error", cut(one.error))
    if one.reason is not None:
        flat += ("reason", one.reason)
    if one.crashed:
        flat += ("crashed", 1)
    if one.queue is not None:
        flat += ("queue", one.queue)
    flat[3] = (len(flat) - 4) // 2
    return flat


def beat_arguments(beat: Beat) -> Flat:
    flat: Flat = [beat.id, beat.lease, 0]
    if beat.progress is not None:
        flat += ("progress", repr(float(beat.progress)))
    if beat.note is not None:
        flat += ("progress_note", beat.note)
    flat[2] = (len(flat) - 3) // 2
    return flat
