"""The Redis storage: one Lua script makes every change, in one atomic step.

address.py               from a URL to servers and options
lines.py, cluster.py     connections
server.py, sentences.py  calls of the script, and errors
outage.py                an error of one shard of several
rows.py, pieces.py       Structs and flat lists, batches in calls
watch.py                 the doorbell
pages.py                 lists
records.py               queues and workers
shards.py                which keys a job lies under
claims.py, permits.py    what several shards decide at one
facts.py                 what servers say of themselves, for doctor
script.py                the tables of gotask.states as Lua
redis.lua, *.lua         the keys, what all verbs share, and the verbs
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from gotask.backends import Backend, ids
from gotask.backends.fields import can_match, check_by_hand, check_texts
from gotask.backends.redis import pages, rows
from gotask.backends.redis.address import parse
from gotask.backends.redis.claims import Claims
from gotask.backends.redis.outage import Outage
from gotask.backends.redis.permits import Permits, Reserved
from gotask.backends.redis.pieces import ROW_BYTES, first_piece, pieces
from gotask.backends.redis.records import Records
from gotask.backends.redis.script import MICROSECONDS
from gotask.backends.redis.sentences import in_part
from gotask.backends.redis.server import Server
from gotask.backends.redis.shards import named
from gotask.backends.redis.watch import RedisWatch
from gotask.model import Beat, Enqueued, Filter, Held, Job, NewJob, Page, Queue, Record, Settlement, Tick, Worker
from gotask.payload import check_text
from gotask.states import Event, State

R = TypeVar("R", Queue, Worker)

AFTER_TIMEOUT_S: Final = 2.0  #: seconds after which a producer whose call timed out has surely given up
_HELD: Final = (Held.LOST, Held.HELD, Held.CANCEL)


def open(url: str, clock: Callable[[], float] | None = None) -> "Redis":
    """The storage that a Redis URL names (address.py has the forms). `clock`, for tests, replaces the clock of Redis."""
    return Redis(Server(parse(url)), clock)


class Redis:
    """A Backend (see gotask.backends) in Redis. Made without I/O; threads share it, and a forked child connects anew."""

    def __init__(self, server: Server, clock: Callable[[], float] | None = None) -> None:
        self._server = server
        self._clock = clock
        self._shards = server.shards
        self._claims = Claims(self._shards, self._run, server.address.timeout + AFTER_TIMEOUT_S)
        self._records = Records(self._shards, self._run)
        self._permits = Permits(self._shards, self._run, lambda: self.all(Queue))
        self._lease_turn, self._tick_turn = count(), count()  # which shard comes first
        self._unheard = Outage()  # of the latest lease

    def _run(self, root: str, verb: str, *arguments: Any) -> Any:
        return self._server.run(root, verb, self._time(), *arguments)

    def _time(self) -> str:
        return "" if self._clock is None else f"{self._clock() * MICROSECONDS:.0f}"

    def _each(
        self,
        ids: Sequence[str],
        arguments: Callable[[Sequence[int]], Iterable[Any]],
        verb: str,
        *first: Any,
        weigh: Callable[[int], int] = lambda _: 0,
        read: Callable[[Any, Sequence[int]], Iterable[Any]] = lambda answer, _: answer,
        known: Callable[[list[Any]], None] = lambda _: None,
    ) -> list[Any]:
        """Run a verb for many jobs at their shards; answers in the same order.

        `arguments` gives those of the jobs at some positions, and `read` makes answers of the script's for them, both while
        Redis is at another piece. If one of several shards fails, the others are asked, and `known` is called with what they
        answered, before that is raised; None is unknown.
        """
        answers: list[Any] = [None] * len(ids)
        replicas = self._server.address.wait if verb == "enqueue" else 0
        outage, several = Outage(), False
        for root, positions in self._shards.groups(ids):
            cut = list(pieces(positions, weigh))
            several = several or len(cut) > 1
            with outage:
                calls = ([verb, self._time(), *first, *arguments(piece)] for piece in cut)
                for piece, answer in zip(cut, self._server.run_all(root, calls, replicas), strict=True):
                    for at, one in zip(piece, read(answer, piece), strict=True):
                        answers[at] = one
        if self._shards.several:
            with outage:
                known(answers)
        if outage.error is not None and verb == "enqueue" and (several or any(answers)):
            raise in_part(outage.error)
        outage.over()
        return answers

    @property
    def promise(self) -> str:
        return self._server.promise()

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        check_texts(jobs, "unique_key")
        made = iter(ids.make(sum(not new.id for new in jobs)))
        names = [new.id or next(made) for new in jobs]
        if self._shards.several and any(new.unique_key is not None for new in jobs):
            return self._enqueue_claimed(names, jobs)
        return self._enqueue(names, jobs)

    def _enqueue(self, names: Sequence[str], jobs: Sequence[NewJob], claim: str = "") -> list[Any]:
        def of(piece: Sequence[int]) -> tuple[list[str], list[NewJob]]:
            return [names[at] for at in piece], [jobs[at] for at in piece]

        return self._each(
            names,
            lambda piece: rows.enqueue_arguments(*of(piece)),
            "enqueue",
            claim,
            weigh=lambda at: len(bytes(jobs[at].payload)),
            read=lambda answer, piece: rows.read_enqueued(answer, *of(piece)),
        )

    def _enqueue_claimed(self, names: Sequence[str], jobs: Sequence[NewJob]) -> list[Enqueued]:
        """One by one, those with a unique key once they hold it."""
        todo = zip(names, jobs, strict=True)
        return [self._claims.enqueue(id, new.unique_key, partial(self._enqueue, [id], [new])) for id, new in todo]

    def lease(self, wants: Mapping[str, int], owner: str, lease_s: float) -> list[Job]:
        check_text("owner", owner)
        wants = {queue: want for queue, want in wants.items() if want > 0}
        if not self._shards.several:
            return self._lease_at(self._shards.roots[0], wants, owner, lease_s, judged=True)
        with self._permits.reserved(wants, lease_s) as permits:
            return self._lease_anywhere(wants, permits, owner, lease_s)

    def _lease_anywhere(self, wants: Mapping[str, int], permits: Reserved, owner: str, lease_s: float) -> list[Job]:
        """From all shards that answer, in turn. What one leased whose answer was lost has no owner who knows, so it is said,
        in place of the next lease if others gave jobs; one that could not be asked is left out.
        """
        self._unheard, unheard = Outage(), self._unheard
        unheard.over()
        rest = dict(wants) | {queue: n for queue, (_, n) in permits.items()}
        jobs: list[Job] = []
        away, asked = Outage(), 0
        for root in self._shards.in_turn(next(self._lease_turn)):
            if not any(rest.values()):
                break
            with away:
                self._server.reach(root)
                asked += 1
                with self._unheard:
                    for job in self._lease_at(root, rest, owner, lease_s, judged=False):
                        rest[job.queue] -= 1
                        jobs.append(job)
        if not jobs:
            self._unheard, unheard = Outage(), self._unheard
            unheard.over()
        if not asked:
            away.over()
        for queue, (token, n) in permits.items():
            self._permits.give(queue, token, n, [job for job in jobs if job.queue == queue], lease_s)
        permits.clear()
        return sorted(jobs, key=lambda job: (-job.priority, job.created_at, job.id))

    def _lease_at(self, root: str, wants: Mapping[str, int], owner: str, lease_s: float, *, judged: bool) -> list[Job]:
        """Lease from one shard, a piece at a time, until each queue has given what it was asked for or has no more."""
        rest = Counter(wants)
        jobs: list[Job] = []
        asked: list[Mapping[str, int]] = []

        def calls() -> Iterator[list[Any]]:
            while piece := first_piece(rest):
                rest.subtract(piece)
                asked.append(piece)
                flat = [part for one in piece.items() for part in one]
                yield ["lease", self._time(), owner, rows.micros_of(lease_s), int(judged), *flat]

        while any(rest.values()):
            for answer in self._server.run_all(root, calls()):
                found, cut = rows.read_leased(answer, owner)
                jobs += found
                short = Counter(asked.pop(0)) - Counter(job.queue for job in found)
                for queue, n in short.items():
                    rest[queue] = rest[queue] + n if cut else 0
        return jobs

    def settle_many(self, settlements: Sequence[Settlement]) -> list[bool]:
        check_texts(settlements, "error", "reason")
        names = [one.id for one in settlements]
        answers = self._each(
            names,
            lambda piece: (part for at in piece for part in rows.settle_arguments(settlements[at])),
            "settle",
            weigh=lambda at: len(settlements[at].result or b""),
            known=lambda answers: self._permits.hand_back(_by_queue(names, answers)),
        )
        return [answer != 0 for answer in answers]

    def extend_many(self, beats: Sequence[Beat], lease_s: float) -> list[Held]:
        check_texts(beats, "note")
        names = [beat.id for beat in beats]
        answers = self._each(
            names,
            lambda piece: (part for at in piece for part in rows.beat_arguments(beats[at])),
            "extend",
            rows.micros_of(lease_s),
            known=lambda answers: self._permits.extend(_by_queue(names, map(_permit_of, answers)), lease_s),
        )
        return [_HELD[int(answer.partition(b" ")[0] if isinstance(answer, bytes) else answer)] for answer in answers]

    def tick(self, limit: int = 1000) -> Tick:
        total, outage, changes = Tick(), Outage(), dict[str, int]()
        for root in self._shards.in_turn(next(self._tick_turn)):  # any may have enough to do for all of the limit
            with outage:
                done, changes[root] = rows.read_tick(self._run(root, "tick", limit))
                limit -= done.promoted + done.lapsed + done.expired + done.pruned
                total.promoted += done.promoted
                total.lapsed += done.lapsed
                total.expired += done.expired
                total.pruned += done.pruned
                total.next_in = min((one for one in (total.next_in, done.next_in) if one is not None), default=None)
        if self._shards.several:
            with outage:
                self._records.heal(changes)
            with outage:
                if self._claims.sweep():
                    total.next_in = 0.0
        outage.over()
        return total

    def watch(self, topics: Sequence[str]) -> RedisWatch:
        return RedisWatch(self._server, topics)

    def move_many(self, ids: Sequence[str], event: Event, reason: str | None = None) -> list[bool]:
        check_by_hand(event)
        check_text("reason", reason)
        if self._shards.several and event is Event.REVIVE:
            return [self._claims.revive(id, partial(self._move, [id], event, reason)) for id in ids]
        return [answer == 1 for answer in self._move(ids, event, reason)]

    def _move(self, ids: Sequence[str], event: Event, reason: str | None, claim: str = "", key: str = "") -> list[Any]:
        first = event.value, reason or "", claim, key
        return self._each(ids, lambda piece: (named(ids[at]) for at in piece), "move", *first)

    def drop_many(self, ids: Sequence[str]) -> list[bool]:
        return [answer == 1 for answer in self._each(ids, lambda piece: (named(ids[at]) for at in piece), "drop")]

    def get_many(self, ids: Sequence[str]) -> list[Job | None]:
        found = self._each(ids, lambda piece: (named(ids[at]) for at in piece), "get", weigh=lambda _: ROW_BYTES)
        return [rows.read(row) if row else None for row in found]

    def find(self, filter: Filter) -> Page:
        if not can_match(filter):
            return Page([])
        return pages.find(self._run, self._shards.roots, filter)

    def counts(self) -> dict[tuple[str, State], int]:
        found: dict[tuple[str, State], int] = {}
        for root in self._shards.roots:
            flat = self._run(root, "counts")
            for at in range(0, len(flat), 2):
                status, _, queue = flat[at].decode().partition(" ")
                key = (queue, State(status))
                found[key] = found.get(key, 0) + int(flat[at + 1])
        return found

    def put(self, record: Record, version: int | None = None) -> bool:
        return self._records.put(record, version)

    def get(self, kind: type[R], name: str) -> R | None:
        return self._records.get(kind, name)

    def all(self, kind: type[R]) -> list[R]:
        return self._records.all(kind)

    def drop(self, kind: type[R], name: str, version: int | None = None) -> bool:
        return self._records.drop(kind, name, version)

    def close(self) -> None:
        self._server.close()


def _permit_of(answer: Any) -> bytes | None:
    """The queue in the answer to a beat, if there is a permit to be extended."""
    return answer.partition(b" ")[2] if isinstance(answer, bytes) else None


def _by_queue(ids: Sequence[str], answers: Iterable[Any]) -> dict[str, list[str]]:
    """The ids whose answer is the name of a queue, by queue."""
    found: dict[str, list[str]] = {}
    for id, answer in zip(ids, answers, strict=True):
        if isinstance(answer, bytes):
            found.setdefault(answer.decode(), []).append(id)
    return found


_conforms: type[Backend] = Redis  # for the type checker
