"""Connections to one SQLite file: one per thread, transactions in turn, every error translated here and nowhere else.

SQLite must not be carried across a fork (its locks belong to a process, its memory says otherwise), so all connections of
this process are closed just before one, and each side opens its own when it needs them.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import apsw

from gotask import clock as clocks
from gotask.backends.sqlite import sql
from gotask.backends.sqlite.bell import NODE, WORK, Bell
from gotask.backends.sqlite.home import Home, claim_file
from gotask.backends.sqlite.schema import MIGRATIONS, VERSION
from gotask.backends.sqlite.turn import Turn
from gotask.errors import BackendDown, NotConfigured
from gotask.states import State

OLDEST_ENGINE: Final = (3, 51, 3)  #: earlier ones can corrupt a database when the write-ahead log starts again
PAGE_SIZE: Final = 8192  #: bytes; a batch touches fewer, larger pages, which is faster than 4096 by a twentieth
CACHE_KIB: Final = 16_384  #: of pages per connection
#: pages of log before they are copied back: by those who work in batches at once, by others and in turn when it is late
CHECKPOINT_PAGES: Final = 1000
_LATE, _OVERDUE = 4, 16


class Txn:
    """A write transaction under way: the connection, the instant, and what to tell others once it holds."""

    __slots__ = ("_counts", "db", "ended", "node", "now", "work")

    def __init__(self, db: apsw.Connection, now: float) -> None:
        self.db = db
        self.now = now
        self.work = False
        self.node = False
        self.ended: list[str] = []
        self._counts: dict[tuple[str, State], int] = {}

    def count(self, queue: str, state: State, n: int) -> None:
        key = (queue, state)
        self._counts[key] = self._counts.get(key, 0) + n

    def flush(self) -> None:
        rows = [(queue, state.value, n) for (queue, state), n in self._counts.items() if n]
        if rows:
            self.db.executemany(sql.COUNT, rows)


class Link:
    """One thread's connection. The lock is free but while a call runs, or a fork."""

    def __init__(self, home: Home, bell: Bell) -> None:
        self.lock = threading.Lock()
        self.pages = 0  # of log, as of the last commit
        self._durable = home.durable
        self._synced: bool | None = None
        self.turn = Turn(home.path, bell, home.timeout)
        try:
            self.turn.take()  # two that make a new file at once would find it locked
            try:
                self.db = _connect(home)
            finally:
                self.turn.give()
        except BaseException:
            self.turn.close()
            raise
        self.db.set_wal_hook(self._logged)

    def _logged(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self.pages = pages
        return apsw.SQLITE_OK

    def sync(self, wanted: bool) -> None:
        """Whether the next commit waits for the disk. One that does takes all commits before it along."""
        if self._durable and wanted is not self._synced:
            self.db.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._synced = wanted

    def close(self) -> None:
        self.db.close()
        self.turn.close()


def _connect(home: Home) -> apsw.Connection:
    claim_file(home.path)
    db = apsw.Connection(home.path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=200)
    try:
        db.set_busy_timeout(int(home.timeout * 1000))
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # a durable home asks for more with each transaction, see Link.sync
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA trusted_schema = OFF")
        # Plans must not depend on bound values: else SQLite prepares a statement anew whenever one of them changes.
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        db.wal_autocheckpoint(0)
    except BaseException:
        db.close()
        raise
    return db


class Links:
    """All connections of this process to one store."""

    def __init__(self, home: Home, clock: Callable[[], float]) -> None:
        if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_ENGINE:
            raise NotConfigured(
                f"This apsw brings SQLite {apsw.sqlite_lib_version()}, which can corrupt a database; install one with "
                f"{'.'.join(map(str, OLDEST_ENGINE))} or newer."
            )
        self.home = home
        self.clock = clock
        with translated(home):
            claim_file(home.path)
            self.bell = Bell(f"{home.path}-bell")
        self._closed = False
        self._guard = threading.Lock()  # of the list below
        self._local = threading.local()
        self._links: dict[int, tuple[weakref.ref[threading.Thread], Link]] = {}
        _ALL.add(self)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def _mine(self) -> Link:
        """This thread's connection, its lock taken."""
        while True:
            found = getattr(self._local, "link", None)
            link: Link = self._open() if found is None else found
            link.lock.acquire()
            current: Link | None = getattr(self._local, "link", None)
            if current is link:  # not closed by a fork while we waited for its lock
                return link
            link.lock.release()

    def _open(self) -> Link:
        with self._guard:
            if self._closed:
                raise BackendDown(f"The storage {self.home.path} was closed; open it again.", retry_after=None)
            for number, (of, old) in list(self._links.items()):
                thread = of()
                if thread is None or not thread.is_alive():
                    del self._links[number]
                    old.close()
            link = Link(self.home, self.bell)
            self._links[id(link)] = (weakref.ref(threading.current_thread()), link)
            self._local.link = link
            return link

    @contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """A connection for statements that change nothing, each seeing the latest commit."""
        with translated(self.home):
            link = self._mine()
            try:
                yield link.db
            finally:
                link.lock.release()

    @contextmanager
    def write(self, batch: bool = False, synced: bool = True) -> Iterator[Txn]:
        """A transaction: all of the block or nothing. Bells ring after it holds. `batch`: work that may pay for upkeep.

        `synced` False is for what a loss of power may undo, because doing it again is all that follows.
        """
        with translated(self.home):
            link = self._mine()
            try:
                link.turn.take()
                try:
                    link.sync(synced)
                    txn = _run_begin(link.db, self.clock)
                    try:
                        yield txn
                        txn.flush()
                        link.db.execute("COMMIT")
                    except BaseException:
                        if link.db.in_transaction:
                            link.db.execute("ROLLBACK")
                        raise
                    if link.pages > CHECKPOINT_PAGES * _OVERDUE:
                        _checkpoint(link)  # still in turn: with nobody writing, it reaches the end of the log
                finally:
                    link.turn.give()
                self._tell(txn)
                if link.pages > CHECKPOINT_PAGES * (1 if batch else _LATE):
                    _checkpoint(link)
            finally:
                link.lock.release()

    def _tell(self, txn: Txn) -> None:
        if txn.work:
            self.bell.ring(WORK)
        if txn.node:
            self.bell.ring(NODE)
        if txn.ended:
            self.bell.ring_jobs(txn.ended)

    def _migrate(self) -> None:
        with self.read() as db:
            version = db.pragma("user_version")
            if version == VERSION and db.execute(sql.BOOT).get == clocks.boot_id():
                return
        with self.write() as txn:
            version = txn.db.pragma("user_version")  # again, now that nobody else migrates
            if version > VERSION:
                raise NotConfigured(
                    f"The file {self.home.path} was written by a newer GoTask (schema {version}, this one knows {VERSION}); "
                    "upgrade this installation, or name another file."
                )
            for step in MIGRATIONS[version:]:
                for statement in step:
                    txn.db.execute(statement)
            txn.db.execute(f"PRAGMA user_version = {VERSION}")
            if txn.db.execute(sql.BOOT).get != clocks.boot_id():
                txn.db.execute(sql.SKIP_LEASES, (clocks.boot_id(),))

    def before_fork(self) -> None:
        """Wait until no call runs, and let go of all that a child must not share."""
        self._guard.acquire()
        for _, link in self._links.values():
            link.lock.acquire()
            link.close()

    def after_fork(self) -> None:
        closed, self._links, self._local = self._links, {}, threading.local()
        for _, link in closed.values():
            link.lock.release()
        self._guard.release()

    def close(self) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
            _ALL.discard(self)
            for _, link in self._links.values():
                with link.lock:
                    link.close()
            self._links, self._local = {}, threading.local()
        self.bell.close()


def _run_begin(db: apsw.Connection, clock: Callable[[], float]) -> Txn:
    db.execute("BEGIN IMMEDIATE")
    return Txn(db, clock())  # the time after the wait, so that instants rise with the order of commits


def _checkpoint(link: Link) -> None:
    """Copy the log back. Others may read and write meanwhile; if one is in the way, the next commit tries again."""
    with suppress(apsw.BusyError):  # somebody else is at it
        link.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    link.pages = 0


@contextmanager
def translated(home: Home) -> Iterator[None]:
    """Turn whatever the engine or the disk says into BackendDown with a sentence."""
    try:
        yield
    except (apsw.Error, OSError) as e:
        raise BackendDown(_sentence(home, e), refused=not isinstance(e, apsw.BusyError | apsw.LockedError)) from e


def _sentence(home: Home, error: Exception) -> str:
    full = isinstance(error, apsw.FullError) or getattr(error, "errno", None) == 28  # ENOSPC
    if full:
        return f"The disk that holds {home.path} is full; free some space, then try again."
    if isinstance(error, apsw.IOError):
        return f"The disk that holds {home.path} does not read or write ({error}); look at its health and permissions."
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return f"Another process has locked {home.path} for {home.timeout:g} s; try again, or look for one that is stopped."
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return f"The file {home.path} is damaged or no GoTask database ({error}); restore it from a copy."
    return f"The storage {home.path} failed ({error}); the outcome is unknown, so try again with the same id."


_ALL: Final[weakref.WeakSet[Links]] = weakref.WeakSet()
_forking: list[Links] = []


def _before_fork() -> None:
    _forking[:] = list(_ALL)
    for links in _forking:
        links.before_fork()


def _after_fork(*_: Any) -> None:
    for links in _forking:
        links.after_fork()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
