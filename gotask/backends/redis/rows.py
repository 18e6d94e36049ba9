"""Between Structs and the flat lists that redis.lua takes and answers.

A job is answered as job (its id, when it was accepted, its type), payload, more, due, then field, value, field, value ...
of its hash. Times are whole microseconds. Nothing here names a field but to say that it is special.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final, get_origin

import msgspec
from msgspec import Raw

from gotask.backends.fields import BODY, KINDS, NAMES, born, compiled, cut, stands
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

OWN: Final = 4  #: where the fields of a row's hash begin
Flat = list[Any]  #: what hiredis makes of an answer: bytes, whole numbers, and lists of them


def micros(moment: datetime) -> int:
    return round(to_epoch(moment) * MICROSECONDS)


def micros_of(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def moment(text: bytes | str) -> datetime:
    return from_epoch(int(text) / MICROSECONDS)


def attempts(text: bytes) -> list[Attempt]:
    found = msgspec.json.decode(text, type=list[tuple[str | None, str | None, str | None, str, str | None]])
    return [
        Attempt(worker, started and moment(started), ended and moment(ended), outcome, error)  # type: ignore[arg-type]
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


def born_as(row: Flat) -> tuple[str, datetime, str]:
    """The id of a job, when it was accepted, and its type."""
    id, accepted, type = row[0].decode().split(" ", 2)
    return id, moment(accepted), type


def read(row: Flat) -> Job:
    """A row as a Job."""
    id, created, type = born_as(row)
    job = Job(id=id, type=type, payload=Raw(row[1]), created_at=created, updated_at=created)
    if row[3]:
        job.due_at = from_epoch(float(row[3]) / MICROSECONDS)
    for at in range(OWN, len(row), 2):
        field = row[at]
        found = _FIELDS.get(field)
        if found is not None:  # else what only the script needs, or a newer version
            name, convert = found
            setattr(job, name, convert(row[at + 1]))
    for latest in (job.started_at, job.completed_at):
        if latest is not None and latest > job.updated_at:  # type: ignore[operator]
            job.updated_at = latest
    if row[2]:
        more = _more.decode(row[2])
        for name in MORE:
            setattr(job, name, getattr(more, name))
    return job


def seq_of(row: Flat) -> int:
    return next(int(row[at + 1]) for at in range(OWN, len(row), 2) if row[at] == b"seq")


def claim_of(row: Flat) -> bytes:
    """Until when the claim was good by which a job has its unique key, as the script wrote it; empty without one."""
    return next((row[at + 1] for at in range(OWN, len(row), 2) if row[at] == b"claim"), b"")


def read_leased(answer: Flat, owner: str) -> tuple[list[Job], bool]:
    """The answer of `lease`: rows as they were before it, with what it changed; and whether it was cut short for its size."""
    if not answer:
        return [], False
    now, lease, cut = moment(answer[0]), int(answer[1]), bool(answer[2])
    jobs = []
    for row in answer[3:]:
        job = read(row)
        job.status, job.lease, job.worker_id = _RUNNING, lease, owner
        job.started_at = job.updated_at = now
        job.reason = None
        jobs.append(job)
    return jobs, cut


def read_enqueued(answer: Flat, ids: Sequence[str], jobs: Sequence[NewJob]) -> Sequence[Enqueued | None]:
    """The answer of `enqueue`: when jobs were created, and the rows of those that stand instead, by position.

    None: it was too late for the job's claim.
    """
    if not answer:
        return [None] * len(jobs)
    now = int(answer[0]) / MICROSECONDS
    instead = dict(zip(answer[1::2], answer[2::2], strict=True))
    return [
        _stands(read(instead[at]), id, new) if at in instead else Enqueued("created", _created(new, id, now))
        for at, (id, new) in enumerate(zip(ids, jobs, strict=True), 1)
    ]


def _stands(job: Job, id: str, new: NewJob) -> Enqueued:
    return stands(new, job) if job.id == id else Enqueued("duplicate", job)


def _created(new: NewJob, id: str, now: float) -> Job:
    due = max(now + (new.delay or 0.0), to_epoch(new.scheduled_at) if new.scheduled_at is not None else 0.0)
    if due > now:
        return born(new, id, _SLEEPS, from_epoch(due), from_epoch(now))
    return born(new, id, _WAITS, new.expires_at, from_epoch(now))


def read_tick(answer: Flat) -> tuple[Tick, int]:
    """The answer of `tick`: pairs of a word and a number, among them when the next is due, in microseconds; and the latest
    change of a queue's record that the shard knows of.
    """
    told = [(answer[at].decode(), int(answer[at + 1])) for at in range(0, len(answer), 2)]
    done = dict(told)
    following = [wait / MICROSECONDS for word, wait in told if word == "next"]
    promoted, lapsed, expired, pruned = (done.get(verb, 0) for verb in ("promote", "lapse", "expire", "prune"))
    return Tick(promoted, lapsed, expired, pruned, min(following, default=None)), done.get("change", 0)


def _told() -> Callable[[NewJob], bytes]:
    nothing = " and ".join(f"new.{name} is None" for name in MORE)
    values = ", ".join(f"new.{name}" for name in MORE)
    source = f"def made(new):\n return b'' if {nothing} else encode(More({values}))"
    return compiled(source, {"More": More, "encode": msgspec.json.encode})


more_of: Final = _told()


def enqueue_arguments(ids: Sequence[str], jobs: Sequence[NewJob]) -> Flat:
    """Of each run of jobs alike, what they share is said once."""
    flat: Flat = [len(jobs)]
    for shared, run in groupby(zip(ids, jobs, strict=True), lambda one: _shared(one[1])):
        own = [part for id, new in run for part in (id, bytes(new.payload))]
        flat += (*shared, len(own) // 2, *own)
    return flat


def _shared(new: NewJob) -> tuple[Any, ...]:
    """All but id and payload."""
    fields: tuple[Any, ...] = ()
    if new.delay is not None:
        fields += ("delay", micros_of(new.delay))
    if new.scheduled_at is not None:
        fields += ("scheduled_at", micros(new.scheduled_at))
    if new.expires_at is not None:
        fields += ("expires_at", micros(new.expires_at))
    if new.unique_key is not None:
        fields += ("unique_key", new.unique_key)
    return new.queue, new.priority, new.type, more_of(new), len(fields) // 2, *fields


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
