"""The PostgreSQL storage: live jobs in one small table, finished ones by the day on which they are forgotten.

address.py     from a URL to a server and options    migrations/   tables and functions, step by step
link.py        connections                           queries.sql   all other statements; sql.py reads them
server.py      transactions                          rows.py       Structs, rows, arrays
sentences.py   errors                                intake.py     enqueue
ringer.py      telling others                        moving.py     what Python decides: settle, what is due, cancel, revive
ear.py         the doorbell                          batch.py      around what others hold
joined.py      the caller's own transaction          due.py        when it looks for what is due
commits.py     what became of that                   lists.py      pages
pins.py        long transactions                     upkeep.py     gotask migrate
facts.py       gotask doctor
"""

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from gotask.backends import Backend
from gotask.backends.cursors import cursor
from gotask.backends.fields import can_match, check_by_hand, check_texts, is_name
from gotask.backends.postgres import batch, commits, lists, moving, pins, rows
from gotask.backends.postgres.address import parse
from gotask.backends.postgres.due import Due
from gotask.backends.postgres.ear import Ear, PostgresWatch
from gotask.backends.postgres.intake import Intake
from gotask.backends.postgres.joined import Joined
from gotask.backends.postgres.ringer import Ringer
from gotask.backends.postgres.server import Server
from gotask.clock import from_epoch, monotonic
from gotask.errors import BackendDown
from gotask.model import Beat, Became, Enqueued, Filter, Held, Job, NewJob, Page, Queue, Record, Settlement, Tick, Worker
from gotask.payload import check_text
from gotask.states import Event, State

R = TypeVar("R", Queue, Worker)

SURVEY_S: Final = 0.5  #: seconds after which it is looked anew where waiting jobs begin


def open(url: str, clock: Callable[[], float] | None = None) -> "Postgres":
    """The storage that a PostgreSQL URL names (address.py has the forms). `clock`, for tests, replaces the server's."""
    return Postgres(Server(parse(url)), clock)


class Postgres:
    """A Backend (see gotask.backends) in PostgreSQL. Made without I/O; threads share it, and a forked child connects anew."""

    def __init__(self, server: Server, clock: Callable[[], float] | None = None) -> None:
        self._server = server
        self._clock = clock
        self._due = Due(server, self._at)
        self._leased: set[str] = set()  #: queues, since they were surveyed last
        self._surveyed_at = monotonic()
        self._channel = f"gotask:{server.address.schema}"
        self._ringer = Ringer(server, self._channel)
        self._ear = Ear(server, self._channel)
        _ALL.add(self)

    def _at(self) -> datetime | None:
        return None if self._clock is None else from_epoch(self._clock())

    def _tell(self, heard: moving.Heard) -> None:
        topics = [f"queue:{queue}" for queue in heard.queues] + [f"node:{owner}" for owner in heard.owners]
        self._ringer.ring(topics, heard.ended)

    @property
    def promise(self) -> str:
        return self._server.promise()

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        if not jobs:
            return []
        check_texts(jobs, "unique_key")
        intake = Intake(self._server.call, jobs, self._at())
        try:
            return intake.answers()
        finally:
            self._ringer.ring(f"queue:{queue}" for queue in intake.queues)

    def joined(self, connection: Any) -> Joined:
        """The way in for jobs that are part of the caller's own transaction, on psycopg's connection or SQLAlchemy's."""
        return Joined(self._server, self._channel, connection)

    def completions(self, runs: Sequence[tuple[str, int]]) -> list[Became]:
        """What became of runs (a job's id, a lease) whose task ended its job in a transaction of its own. Waits for none."""
        answers, heard = commits.look(self._server, runs)
        self._tell(heard)
        return answers

    def lease(self, wants: Mapping[str, int], owner: str, lease_s: float) -> list[Job]:
        check_text("owner", owner)
        asked = sorted((queue, want) for queue, want in wants.items() if want > 0)
        if not asked:
            return []
        queues, numbers = rows.texts([queue for queue, _ in asked]), rows.ints([want for _, want in asked])
        found = self._server.call("lease", queues, numbers, rows.escaped(owner), lease_s, self._at())
        order = {queue: n for n, queue in enumerate(wants)}
        jobs = [(order[job.queue], -job.priority, row[1], job) for row in found for job in (rows.read_job(row),)]
        if jobs:
            self._leased = self._leased | wants.keys()  # another thread may be taking it
            self._ear.found({job.queue for *_, job in jobs})
        return [job for *_, job in sorted(jobs, key=lambda one: one[:3])]

    def _survey(self) -> None:
        """Let the next leases begin behind what has left, which a long transaction elsewhere keeps from being cleaned up."""
        if self._leased and monotonic() - self._surveyed_at > SURVEY_S:
            queues, self._leased, self._surveyed_at = sorted(self._leased), set(), monotonic()
            with suppress(BackendDown):  # the next ending tries again
                self._server.call("survey", SURVEY_S / 2, rows.texts(queues))

    def settle_many(self, settlements: Sequence[Settlement]) -> Sequence[bool | None]:
        return self._settle(settlements, None)

    def settle_free(self, settlements: Sequence[Settlement]) -> Sequence[bool | None]:
        return self._settle(settlements, batch.MOMENT_S)

    def _settle(self, settlements: Sequence[Settlement], patience_s: float | None) -> Sequence[bool | None]:
        if not settlements:
            return []
        answers, heard = moving.settle(self._server, settlements, self._at(), patience_s)
        self._tell(heard)
        self._survey()
        return answers

    def extend_many(self, beats: Sequence[Beat], lease_s: float) -> list[Held]:
        if not beats:
            return []
        check_texts(beats, "note")
        said = {(beat.id, beat.lease): beat for beat in sorted(beats, key=lambda beat: beat.id)}
        found = self._server.call(
            "extend",
            rows.texts([id for id, _ in said]),
            rows.longs([lease for _, lease in said]),
            rows.any_of(rows.floats, [beat.progress for beat in said.values()]),
            rows.any_of(rows.texts, [rows.escaped(beat.note) for beat in said.values()]),
            lease_s,
            self._at(),
        )
        held = {(id, lease): Held.CANCEL if cancel else Held.HELD for id, lease, cancel in found}
        return [held.get((beat.id, beat.lease), Held.LOST) for beat in beats]

    def tick(self, limit: int = 1000) -> Tick:
        done, heard = self._due.tick(limit)
        self._tell(heard)
        return done

    def watch(self, topics: Sequence[str]) -> PostgresWatch:
        return PostgresWatch(self._server, self._ear, topics)

    def warnings(self) -> dict[str, str]:
        """What somebody should look at, as sentences by what they are about; see gotask.node.outlook."""
        return pins.warnings(pins.pins(self._server.call("holds vacuum back", pins.LIMIT_S, pins.BEHIND)))

    def move_many(self, ids: Sequence[str], event: Event, reason: str | None = None) -> list[bool]:
        check_by_hand(event)
        check_text("reason", reason)
        if not ids:
            return []
        move = moving.cancel if event is Event.CANCEL else moving.revive
        answers, heard = move(self._server, _possible(ids), reason, self._at())
        self._tell(heard)
        return batch.settled(self._server.address, ids, answers)

    def drop_many(self, ids: Sequence[str]) -> list[bool]:
        answers, heard = moving.drop(self._server, _possible(ids))
        self._tell(heard)
        return batch.settled(self._server.address, ids, answers)

    def get_many(self, ids: Sequence[str]) -> list[Job | None]:
        if not ids:
            return []
        asked = rows.texts(sorted(set(_possible(ids))))
        found = {job.id: job for job in map(rows.read_job, self._server.call("standing", asked, rows.texts([])))}
        return [found.get(id) for id in ids]

    def find(self, filter: Filter) -> Page:
        if not can_match(filter):
            return Page([])
        asked = lists.page(self._server.address.schema, filter)
        found = self._server.transact(lambda txn: txn.ask(*asked, last=True)[-1])
        jobs = [rows.read_job(row) for row in found[: filter.limit]]
        more = len(found) > filter.limit
        return Page(jobs, cursor(found[filter.limit - 1][0]) if more else None)

    def counts(self) -> dict[tuple[str, State], int]:
        return {(queue, State(status)): n for queue, status, n in self._server.call("count")}

    def put(self, record: Record, version: int | None = None) -> bool:
        check_text("name", record.name)
        body = msgspec.json.encode(record).decode()
        if version is None:
            found = self._server.call("put record", record.KIND, record.name, body)
        elif version == 0:
            found = self._server.call("put new record", record.KIND, record.name, body)
        else:
            found = self._server.call("put known record", body, record.KIND, record.name, version)
        if found and isinstance(record, Queue):  # it may have been resumed, or its limits raised
            self._ringer.ring([f"queue:{record.name}"])
        return bool(found)

    def get(self, kind: type[R], name: str) -> R | None:
        return next(iter(_records(kind, self._server.call("get record", kind.KIND, name))), None)

    def all(self, kind: type[R]) -> list[R]:
        return _records(kind, self._server.call("all records", kind.KIND))

    def drop(self, kind: type[R], name: str, version: int | None = None) -> bool:
        found = self._server.call("drop record", kind.KIND, name, version or 0, version is None)
        if found and kind is Queue:
            self._ringer.ring([f"queue:{name}"])
        return bool(found)

    def close(self) -> None:
        self._ear.stop()
        self._ringer.stop()
        self._server.close()

    def abandon(self) -> None:
        """In a forked child: threads and connections are the parent's."""
        self._ringer.start()
        self._ear.abandon()


def _possible(ids: Sequence[str]) -> list[str]:
    """Ids as they can be asked for: those that could name no job at all become one that does not."""
    return [id if is_name(id) else "" for id in ids]


def _records(kind: type[R], found: Sequence[tuple[Any, ...]]) -> list[R]:
    records = []
    for version, body in found:
        record = msgspec.json.decode(body, type=kind)
        record.version = version
        records.append(record)
    return records


_ALL: Final[weakref.WeakSet[Postgres]] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_ALL):
        store.abandon()


os.register_at_fork(after_in_child=_after_fork)
_conforms: type[Backend] = Postgres  # for the type checker
