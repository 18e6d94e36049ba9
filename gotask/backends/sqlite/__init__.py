"""The embedded storage: jobs in one SQLite file, shared by all processes of a machine. `memory` is this one on tmpfs.

home.py    from a URL to a path              intake.py   enqueue
link.py    connections and transactions      leases.py   lease, extend
turn.py    whose turn it is to write         endings.py  settle
bell.py    who must wake up                  dues.py     tick
schema.py  tables and rows, derived          hand.py     cancel, revive, delete, list
sql.py     the statements                    moves.py    one job from state to state
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from gotask import clock as clocks
from gotask.backends import Backend
from gotask.backends.fields import can_match, check_texts
from gotask.backends.sqlite import dues, endings, hand, intake, leases, sql
from gotask.backends.sqlite.bell import BellWatch
from gotask.backends.sqlite.home import Home, sqlite_home
from gotask.backends.sqlite.link import Links
from gotask.backends.sqlite.moves import known
from gotask.model import Beat, Enqueued, Filter, Held, Job, NewJob, Page, Queue, Record, Settlement, Tick, Worker
from gotask.payload import check_text
from gotask.states import Event, State

R = TypeVar("R", Queue, Worker)


def open(url: str, clock: Callable[[], float] = clocks.now) -> "Sqlite":
    """The storage that a `sqlite` URL names (home.py has the forms); `clock` is the store's, in seconds since the epoch."""
    return Sqlite(sqlite_home(url), clock)


class Sqlite:
    """A Backend (see gotask.backends) in one file. A thread has its own connection; a forked child opens new ones."""

    def __init__(self, home: Home, clock: Callable[[], float] = clocks.now) -> None:
        self._links = Links(home, clock)
        self._memo: leases.Memo = {}

    @property
    def promise(self) -> str:
        return self._links.home.promise

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        if not jobs:
            return []
        check_texts(jobs, "unique_key")
        with self._links.write() as txn:
            return intake.accept(txn, jobs)

    def lease(self, wants: Mapping[str, int], owner: str, lease_s: float) -> list[Job]:
        check_text("owner", owner)
        wants = self._worth_asking(wants)
        if not wants:
            return []
        with self._links.write(batch=True, synced=False) as txn:  # undone, it only means that the job is leased again
            leased = leases.lease(txn, wants, owner, lease_s)
        if len(self._memo) > leases.MEMO_MAX:
            self._memo.clear()
        self._memo.update({job.id: (seq, job.queue, job.lease) for seq, job in leased})
        return [job for _, job in leased]

    def _worth_asking(self, wants: Mapping[str, int]) -> dict[str, int]:
        """The queues with something to lease, so that an idle node never takes the writers' turn."""
        with self._links.read() as db:
            return {queue: n for queue, n in wants.items() if n > 0 and db.execute(sql.WAITING, (queue,)).fetchone()}

    def settle_many(self, settlements: Sequence[Settlement]) -> list[bool]:
        if not settlements:
            return []
        try:
            with self._links.write(batch=True) as txn:
                return endings.settle(txn, settlements, self._memo)
        except endings.Stale:  # all that was remembered of these jobs is forgotten by now
            with self._links.write(batch=True) as txn:
                return endings.settle(txn, settlements, {})

    def extend_many(self, beats: Sequence[Beat], lease_s: float) -> list[Held]:
        if not beats:
            return []
        check_texts(beats, "note")
        with self._links.write(batch=True, synced=False) as txn:
            return leases.extend(txn, beats, lease_s)

    def tick(self, limit: int = 1000) -> Tick:
        rest = self._next_in()
        if rest is None or rest > 0:
            return Tick(next_in=rest)
        with self._links.write(batch=True) as txn:
            done = dues.do(txn, limit)
        done.next_in = self._next_in()
        return done

    def _next_in(self) -> float | None:
        with self._links.read() as db:
            return dues.next_in(db, self._links.clock())

    def watch(self, topics: Sequence[str]) -> BellWatch:
        return BellWatch(self._links.bell, topics)

    def move_many(self, ids: Sequence[str], event: Event, reason: str | None = None) -> list[bool]:
        check_text("reason", reason)
        if not known(ids):
            return [False] * len(ids)
        with self._links.write() as txn:
            return hand.move(txn, ids, event, reason)

    def drop_many(self, ids: Sequence[str]) -> list[bool]:
        if not known(ids):
            return [False] * len(ids)
        with self._links.write() as txn:
            return hand.delete(txn, ids)

    def get_many(self, ids: Sequence[str]) -> list[Job | None]:
        with self._links.read() as db:
            return hand.look_up(db, ids)

    def find(self, filter: Filter) -> Page:
        if not can_match(filter):
            return Page([])
        with self._links.read() as db:
            return hand.find(db, filter)

    def counts(self) -> dict[tuple[str, State], int]:
        with self._links.read() as db:
            return {(queue, State(status)): n for queue, status, n in db.execute(sql.COUNTS)}

    def put(self, record: Record, version: int | None = None) -> bool:
        check_text("name", record.name)
        with self._links.write() as txn:
            row = txn.db.execute(sql.GET_RECORD, (record.KIND, record.name)).fetchone()
            have = 0 if row is None else row[0]
            if version is not None and version != have:
                return False
            body = msgspec.json.encode(msgspec.structs.replace(record, version=have + 1))
            txn.db.execute(sql.PUT_RECORD, (record.KIND, record.name, have + 1, body))
            txn.work = isinstance(record, Queue)  # it may have been resumed, or its limits raised
            return True

    def get(self, kind: type[R], name: str) -> R | None:
        with self._links.read() as db:
            row = db.execute(sql.GET_RECORD, (kind.KIND, name)).fetchone()
        return None if row is None else msgspec.json.decode(row[1], type=kind)

    def all(self, kind: type[R]) -> list[R]:
        with self._links.read() as db:
            rows: list[Any] = db.execute(sql.ALL_RECORDS, (kind.KIND,)).fetchall()
        return [msgspec.json.decode(body, type=kind) for _, body in rows]

    def drop(self, kind: type[R], name: str, version: int | None = None) -> bool:
        with self._links.write() as txn:
            row = txn.db.execute(sql.GET_RECORD, (kind.KIND, name)).fetchone()
            if row is None or (version is not None and version != row[0]):
                return False
            txn.db.execute(sql.DROP_RECORD, (kind.KIND, name))
            txn.work = kind is Queue
            return True

    def close(self) -> None:
        self._links.close()


_conforms: type[Backend] = Sqlite  # for the type checker
