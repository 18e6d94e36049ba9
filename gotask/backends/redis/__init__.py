"""The Redis storage: one Lua script makes every change, in one atomic step.

address.py  from a URL to servers and options     redis.lua   the script, and every key it uses
server.py   connections, deadlines, errors        script.py   the tables of gotask.states as Lua
rows.py     Structs and flat lists                watch.py    the doorbell
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from gotask.backends import Backend, ids
from gotask.backends.fields import born, cut, same_body
from gotask.backends.redis import rows
from gotask.backends.redis.address import parse
from gotask.backends.redis.script import MICROSECONDS
from gotask.backends.redis.server import Server
from gotask.backends.redis.watch import RedisWatch
from gotask.clock import from_epoch, to_epoch
from gotask.errors import InvalidInput
from gotask.model import Beat, Enqueued, Filter, Held, Job, NewJob, Page, Queue, Record, Settlement, Tick, Worker
from gotask.states import ON_DUE, RULES, Event, State

R = TypeVar("R", Queue, Worker)

CHUNK: Final = 500  #: jobs in one call of the script, lest others wait for it
_HELD: Final = (Held.LOST, Held.HELD, Held.CANCEL)
_SLEEPS: Final = RULES[Event.SNOOZE].to  # where a job for later waits
_WAITS: Final = ON_DUE[_SLEEPS].to[0]
_BY_HAND: Final = (Event.CANCEL, Event.REVIVE)


def open(url: str, clock: Callable[[], float] | None = None) -> "Redis":
    """The storage that a Redis URL names (address.py has the forms). `clock`, for tests, replaces the clock of Redis."""
    return Redis(Server(parse(url)), clock)


class Redis:
    """A Backend (see gotask.backends) in Redis. Made without I/O; threads share it, and a forked child connects anew."""

    def __init__(self, server: Server, clock: Callable[[], float] | None = None) -> None:
        self._server = server
        self._clock = clock
        self._root = f"{server.address.prefix}:{{0}}"

    def _run(self, verb: str, *arguments: Any) -> Any:
        return self._server.run(self._root, verb, self._time(), *arguments)

    def _time(self) -> str:
        return "" if self._clock is None else f"{self._clock() * MICROSECONDS:.0f}"

    @property
    def promise(self) -> str:
        return self._server.promise()

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        made = iter(ids.make(sum(not new.id for new in jobs)))
        named = [(new.id or next(made), new) for new in jobs]
        answers: list[Enqueued] = []
        for piece in _pieces(named):
            flat: list[Any] = [len(piece)]
            for id, new in piece:
                flat += rows.enqueue_arguments(id, new)
            now, *outcomes = self._server.run_durably(self._root, "enqueue", self._time(), *flat)
            at = int(now) / MICROSECONDS
            answers += [_answer(outcome, id, new, at) for outcome, (id, new) in zip(outcomes, piece, strict=True)]
        return answers

    def lease(self, wants: Mapping[str, int], owner: str, lease_s: float) -> list[Job]:
        asked = [part for queue, want in wants.items() if want > 0 for part in (queue, want)]
        if not asked:
            return []
        return rows.read_leased(self._run("lease", owner, _micros(lease_s), *asked), owner)

    def settle_many(self, settlements: Sequence[Settlement]) -> list[bool]:
        held: list[bool] = []
        for piece in _pieces(settlements):
            flat: list[Any] = []
            for one in piece:
                flat += rows.settle_arguments(one, cut)
            held += [answer == 1 for answer in self._run("settle", *flat)]
        return held

    def extend_many(self, beats: Sequence[Beat], lease_s: float) -> list[Held]:
        held: list[Held] = []
        for piece in _pieces(beats):
            flat: list[Any] = [_micros(lease_s)]
            for beat in piece:
                flat += rows.beat_arguments(beat)
            held += [_HELD[answer] for answer in self._run("extend", *flat)]
        return held

    def tick(self, limit: int = 1000) -> Tick:
        answer = self._run("tick", limit)
        told = [(answer[at].decode(), int(answer[at + 1])) for at in range(0, len(answer), 2)]
        done = dict(told)
        following = [wait / MICROSECONDS for word, wait in told if word == "next"]
        return Tick(
            promoted=done.get("promote", 0),
            lapsed=done.get("lapse", 0),
            expired=done.get("expire", 0),
            pruned=done.get("prune", 0),
            next_in=min(following, default=None),
        )

    def watch(self, topics: Sequence[str]) -> RedisWatch:
        return RedisWatch(self._server, topics, lambda _: self._root)

    def move_many(self, ids: Sequence[str], event: Event, reason: str | None = None) -> list[bool]:
        if event not in _BY_HAND:
            raise InvalidInput(
                f"{event.value} is settled by the holder of the lease; by hand a job can be cancelled or revived."
            )
        answers: list[bool] = []
        for piece in _pieces(ids):
            answers += [answer == 1 for answer in self._run("move", event.value, reason or "", *map(_named, piece))]
        return answers

    def drop_many(self, ids: Sequence[str]) -> list[bool]:
        answers: list[bool] = []
        for piece in _pieces(ids):
            answers += [answer == 1 for answer in self._run("drop", *map(_named, piece))]
        return answers

    def get_many(self, ids: Sequence[str]) -> list[Job | None]:
        found: list[Job | None] = []
        for piece in _pieces(ids):
            found += [rows.read(row) if row else None for row in self._run("get", *map(_named, piece))]
        return found

    def find(self, filter: Filter) -> Page:
        wanted = (
            filter.queue or "",
            filter.status.value if filter.status is not None else "",
            filter.type or "",
            filter.worker_id or "",
            filter.unique_key or "",
            "" if filter.created_after is None else rows.micros(filter.created_after),
            "" if filter.created_before is None else rows.micros(filter.created_before),
        )
        cursor: Any = "" if filter.cursor is None else _seq(filter.cursor)
        found: list[Any] = []
        skip = filter.offset
        while True:
            cursor, skip, more = self._run("page", *wanted, cursor, skip, filter.limit + 1 - len(found))
            found += more
            if not cursor or len(found) > filter.limit:
                break
        page = found[: filter.limit]
        more = len(found) > filter.limit
        return Page([rows.read(row) for row in page], _cursor(rows.seq_of(page[-1])) if more else None)

    def counts(self) -> dict[tuple[str, State], int]:
        flat = self._run("counts")
        found: dict[tuple[str, State], int] = {}
        for at in range(0, len(flat), 2):
            status, _, queue = flat[at].decode().partition(" ")
            found[queue, State(status)] = int(flat[at + 1])
        return found

    def put(self, record: Record, version: int | None = None) -> bool:
        expected = "" if version is None else version
        return bool(self._run("put", record.KIND, record.name, expected, msgspec.json.encode(record)))

    def get(self, kind: type[R], name: str) -> R | None:
        return next(iter(self._records(kind, name)), None)

    def all(self, kind: type[R]) -> list[R]:
        return sorted(self._records(kind), key=lambda record: record.name)

    def _records(self, kind: type[R], *names: str) -> list[R]:
        flat = self._run("records", kind.KIND, *map(_named, names))
        found = []
        for at in range(0, len(flat), 3):
            record = msgspec.json.decode(flat[at + 2], type=kind)
            record.version = int(flat[at + 1])
            found.append(record)
        return found

    def drop(self, kind: type[R], name: str, version: int | None = None) -> bool:
        return bool(self._run("discard", kind.KIND, _named(name), "" if version is None else version))

    def close(self) -> None:
        self._server.close()


def _answer(outcome: Any, id: str, new: NewJob, now: float) -> Enqueued:
    if outcome != 1:
        stands = rows.read(outcome)
        return Enqueued("duplicate" if stands.id != id or same_body(new, stands) else "conflict", stands)
    due = max(now + (new.delay or 0.0), to_epoch(new.scheduled_at) if new.scheduled_at is not None else 0.0)
    if due > now:
        return Enqueued("created", born(new, id, _SLEEPS, from_epoch(due), from_epoch(now)))
    return Enqueued("created", born(new, id, _WAITS, new.expires_at, from_epoch(now)))


def _pieces(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), CHUNK):
        yield items[at : at + CHUNK]


def _micros(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def _named(id: str) -> bytes:
    """An id or a name as bytes; one that no UTF-8 can spell names nothing."""
    return id.encode("utf-8", "replace")


def _cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(b"s%d" % seq).decode().rstrip("=")


def _seq(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        if text[:1] != b"s" or not text[1:].isdigit() or len(text) > 20:
            raise ValueError
        return int(text[1:])
    except ValueError:
        raise InvalidInput(f"The cursor {cursor[:64]!r} is not one this storage gave; start again without it.") from None


_conforms: type[Backend] = Redis  # for the type checker
