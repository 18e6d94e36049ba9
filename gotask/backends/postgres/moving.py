"""Jobs that Python moves: locked, changed as Structs by gotask.backends.moves, and written back in one statement."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any

from gotask.backends import moves
from gotask.backends.fields import check_texts
from gotask.backends.postgres import batch, rows
from gotask.backends.postgres.link import milliseconds
from gotask.backends.postgres.server import Rows, Server, Txn
from gotask.clock import from_epoch, to_epoch
from gotask.model import Queue, Settlement, Tick
from gotask.states import FINISHED, KEEP_S, ON_DUE, RULES, Event, State


class Standing:
    """A job as a transaction found it, enough of its Struct to move it, and where it stands."""

    __slots__ = ("ahead", "due", "found", "fresh", "instant", "job", "moved", "place", "queue", "seq")

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.seq: int = row[0]
        self.place: int = row[1]
        self.fresh: int = row[-2]  #: a place at the end of its queue
        self.instant: float = row[-1]  #: the store's time
        #: seconds by which its clock was ahead when it forgot all that was due by then; 0 if that is past
        self.ahead = max(0.0, row[-3] - self.instant)
        self.job = rows.read_moving(row)
        self.found = self.job.status
        self.queue = self.job.queue
        self.due = self.job.due_at
        self.moved = False


class Heard:
    """Who must hear of a transaction once it holds."""

    def __init__(self) -> None:
        self.queues: set[str] = set()
        self.ended: list[str] = []
        self.owners: set[str] = set()


def by_id(found: Iterable[tuple[Any, ...]]) -> dict[str, Standing]:
    return {at.job.id: at for at in map(Standing, found)}


def write(moved: Sequence[Standing], heard: Heard) -> tuple[Any, ...]:
    """The call that stores what was changed of live jobs, and tells who must hear of it."""
    tallies: dict[tuple[str, str, datetime | None], int] = {}
    staying: list[dict[str, Any]] = []
    ending: list[dict[str, Any]] = []
    for at in moved:
        job = at.job
        if job.status in FINISHED and at.ahead and job.due_at is not None:  # else it would be forgotten already
            job.due_at = from_epoch(to_epoch(job.due_at) + at.ahead)
        changed = rows.change(job, at.seq, at.place)
        changed["updated_at"] = from_epoch(at.instant)
        (ending if job.status in FINISHED else staying).append(changed)
        if job.status is at.found and job.queue == at.queue:
            continue
        tally(tallies, at.queue, at.found, None, -1)
        tally(tallies, job.queue, job.status, job.due_at, 1)
        if job.status in FINISHED:
            heard.ended.append(job.id)
        else:
            heard.queues.add(job.queue)
    texts = [rows.to_json(part).decode() if part else None for part in (staying, ending)]
    return ("write", *texts, *arrays(tallies))


def tally(tallies: dict[tuple[str, str, datetime | None], int], queue: str, state: State, due: datetime | None, n: int) -> None:
    key = (queue, state.value, due if state in FINISHED else None)
    tallies[key] = tallies.get(key, 0) + n


def arrays(tallies: dict[tuple[str, str, datetime | None], int]) -> tuple[Any, ...]:
    keys = list(tallies)
    return (
        rows.texts([queue for queue, _, _ in keys]),
        rows.texts([status for _, status, _ in keys]),
        rows.moments([due for _, _, due in keys]),
        rows.longs([tallies[key] for key in keys]),
    )


# endings

_PLAIN = Event.ACK
_ID = rows.MOVING.index("id")
_KEEP = KEEP_S[RULES[_PLAIN].to]


def settle(
    server: Server, settlements: Sequence[Settlement], at: datetime | None, patience_s: float | None = None
) -> tuple[Sequence[bool | None], Heard]:
    """End leases; the answer says of each whether it was still held, or None if another transaction holds its job.

    Such a one is waited for as long as a call may take, or for `patience_s` seconds.
    """
    return batch.do(server, settlements, attrgetter("id"), lambda txn, some: _settle(txn, some, at, patience_s))


def _settle(
    txn: Txn, settlements: Sequence[Settlement], at: datetime | None, patience_s: float | None
) -> tuple[list[bool], Heard]:
    plain: dict[tuple[str, int], int] = {}
    singly: list[int] = []
    known = {s.id for s in settlements if s.event is not _PLAIN or s.error or s.reason or s.crashed}
    for n, s in enumerate(settlements):
        if s.id not in known:
            plain.setdefault((s.id, s.lease), n)  # the second of two under one lease cannot hold
        else:
            singly.append(n)
    check_texts([settlements[n] for n in singly], "error", "reason")
    answers = [False] * len(settlements)
    heard = Heard()
    calls: list[tuple[Any, ...]] = []
    if singly:  # all that is about to change at once, in the order in which everybody locks jobs, lest two wait for each other
        if patience_s is not None:
            txn.limit(patience_s)
        calls.append(("lock live jobs", at, rows.texts(sorted({s.id for s in settlements}))))
    if plain:
        chosen = [settlements[n] for _, n in sorted(plain.items())]
        calls.append(ack(chosen, at, patience_s))
    found = txn.ask(*calls, last=not singly)
    if plain:
        for id, lease, queue, limited in found[-1]:
            answers[plain[id, lease]] = True
            heard.ended.append(id)
            if limited:
                heard.queues.add(queue)
    if singly:
        moved = _settle_singly(by_id(row for row in found[0] if row[_ID] in known), settlements, singly, answers)
        freed = {one.queue for one in moved} - heard.queues
        extra = [("all records", Queue.KIND)] if freed else []
        told = txn.ask(write(moved, heard), *extra, last=True)
        if extra:
            heard.queues |= freed & {q.name for q in _queues(told[-1]) if q.max_workers}
    return answers, heard


def _queues(found: Rows) -> list[Queue]:
    return [rows.read_queue(body) for _, body in found]


def ack(chosen: Sequence[Settlement], at: datetime | None, patience_s: float | None = None) -> tuple[Any, ...]:
    """The call that ends leases well, given in the order of ids; it answers those that were held."""
    return (
        "ack",
        rows.texts([s.id for s in chosen]),
        rows.longs([s.lease for s in chosen]),
        rows.any_of(rows.blobs, [s.result for s in chosen]),
        rows.floats([_KEEP if s.due_in is None else s.due_in for s in chosen]),
        at,
        None if patience_s is None else milliseconds(patience_s),
    )


def _settle_singly(
    found: dict[str, Standing], settlements: Sequence[Settlement], singly: Sequence[int], answers: list[bool]
) -> list[Standing]:
    for n in singly:
        s = settlements[n]
        one = found.get(s.id)
        held = one is not None and one.job.lease == s.lease and not one.moved and one.found is moves.RUNNING
        answers[n] = held and one is not None and one.found in RULES[s.event].sources
        if answers[n] and one is not None:
            moves.settle(one.job, s, one.instant)
            one.moved = True
    return [one for one in found.values() if one.moved]


# what is due


def do_due(server: Server, limit: int, lapses: bool, at: datetime | None) -> tuple[Tick, Heard]:
    """Move up to `limit` jobs whose time has come, the longest due first; then forget some whose time has come too.

    Leases lapse only with `lapses`.
    """
    heard = Heard()

    def work(txn: Txn) -> Tick:
        heard.__init__()  # type: ignore[misc]  # this may be tried again
        done = Tick()
        (found,) = txn.ask(("lock due jobs", at, limit, lapses, at))
        moved = [Standing(row) for row in found]
        poison = {one.queue for one in moved if one.found is moves.RUNNING}
        dead = dead_letters(txn, poison) if poison else {}
        for one in moved:
            verb = ON_DUE[one.found].verb
            if moves.is_due(one.job, one.instant, dead.get(one.queue)):
                one.place = one.fresh
            done.promoted += verb == "promote"
            done.lapsed += verb == "lapse"
            done.expired += verb == "expire"
        calls = [write(moved, heard)] if moved else []
        *_, ((done.pruned,),) = txn.ask(*calls, ("forget", limit - len(moved), at), last=True)
        return done

    return server.transact(work), heard


def dead_letters(txn: Txn, queues: Iterable[str]) -> dict[str, str | None]:
    (found,) = txn.ask(("all records", Queue.KIND))
    return {queue.name: queue.dead_letter_queue for queue in _queues(found) if queue.name in queues}


# by hand


def cancel(server: Server, ids: Sequence[str], reason: str | None, at: datetime | None) -> tuple[Sequence[bool | None], Heard]:
    """Stop jobs that wait, and mark those that run. None for jobs that others hold."""
    return batch.do(server, ids, str, lambda txn, some: _cancel(txn, some, reason, at))


def _cancel(txn: Txn, ids: Sequence[str], reason: str | None, at: datetime | None) -> tuple[list[bool], Heard]:
    answers = [False] * len(ids)
    heard = Heard()
    (live,) = txn.ask(("lock live jobs", at, rows.texts(sorted(set(ids)))))
    found = by_id(live)
    for n, id in enumerate(ids):
        one = found.get(id)
        answers[n] = one is not None and not one.moved and one.found in RULES[Event.CANCEL].sources
        if answers[n] and one is not None:
            moves.cancel(one.job, reason, one.instant)
            one.moved = True
            if one.found is moves.RUNNING and one.job.worker_id:
                heard.owners.add(one.job.worker_id)
    moved = [one for one in found.values() if one.moved]
    if moved:
        txn.ask(write(moved, heard), last=True)
    return answers, heard


def revive(server: Server, ids: Sequence[str], reason: str | None, at: datetime | None) -> tuple[Sequence[bool | None], Heard]:
    """Finished jobs become live ones; False where RULES has no such way, or a key is taken. None for what others hold."""
    return batch.do(server, ids, str, lambda txn, some: _revive(txn, some, reason, at), "finished")


def _revive(txn: Txn, ids: Sequence[str], reason: str | None, at: datetime | None) -> tuple[list[bool], Heard]:
    answers = [False] * len(ids)
    heard = Heard()
    (finished,) = txn.ask(("lock finished jobs", at, rows.texts(sorted(set(ids)))))
    found = by_id(finished)
    places = iter(sorted(one.fresh for one in found.values()))
    named = {one.seq: id for id, one in found.items()}
    coming, keys = [], set[str]()
    for n, id in enumerate(ids):
        one = found.get(id)
        key = one.job.unique_key if one is not None else None
        answers[n] = one is not None and not one.moved and one.found in RULES[Event.REVIVE].sources and key not in keys
        if answers[n] and one is not None:
            moves.revive(one.job, reason)
            one.moved, one.place = True, next(places)
            if key is not None:
                keys.add(key)
            changed = rows.change(one.job, one.seq, one.place)
            coming.append(changed | {"id": id, "updated_at": from_epoch(one.instant)})
    if not coming:
        return answers, heard
    coming.sort(key=lambda one: named[one["seq"]])  # the order in which others enqueue those ids
    (back,) = txn.ask(("revive", rows.to_json(coming).decode()))
    came = {seq for (seq,) in back}
    tallies: dict[tuple[str, str, datetime | None], int] = {}
    for n, id in enumerate(ids):
        one = found.get(id)
        if answers[n] and one is not None:
            answers[n] = one.seq in came
            if answers[n]:
                tally(tallies, one.queue, one.found, one.due, -1)
                tally(tallies, one.job.queue, one.job.status, None, 1)
                heard.queues.add(one.job.queue)
    txn.ask(("write", None, None, *arrays(tallies)), last=True)
    return answers, heard


def drop(server: Server, ids: Sequence[str]) -> tuple[Sequence[bool | None], Heard]:
    """Delete what does not run. An id that ends meanwhile is in the second place looked at. None for what others hold."""
    heard = Heard()
    gone: dict[str, bool | None] = {}
    # one after the other, since whoever revives locks `history` first: else each could hold what the other waits for
    for kind, statement in (("live", "drop waiting jobs"), ("finished", "drop ended jobs")):
        asked = sorted(set(ids) - {id for id, answer in gone.items() if answer is not False})
        answers, _ = batch.do(server, asked, str, partial(_drop, statement), kind)
        gone |= zip(asked, answers, strict=True)
    heard.ended += [id for id, answer in gone.items() if answer]
    return [gone.pop(id, False) for id in ids], heard


def _drop(statement: str, txn: Txn, ids: Sequence[str]) -> tuple[list[bool], None]:
    (found,) = txn.ask((statement, rows.texts(ids)), last=True)
    gone = {id for (id,) in found}
    return [id in gone for id in ids], None
