"""Connections to one server: each with a deadline on every wait, kept for the next call, and made anew in a forked child.

They are kept here and not by psycopg_pool, whose threads would be alive whenever the program forks.
"""

import os
import select
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from gotask.backends.postgres.address import Address
from gotask.backends.postgres.rows import adapters
from gotask.clock import monotonic
from gotask.errors import BackendDown

T = TypeVar("T")

ADAPTERS: Final = adapters()
#: a server whose clock is late in noticing is given so much before we stop listening to it
GRACE_S: Final = 0.5
#: seconds between two looks at the clock; psycopg lets signals wait for so long too
LOOK_S: Final = 0.1
#: whether the settings at its start reached the session, which some poolers leave out without a word
_HEEDED: Final = "SELECT current_setting('gotask.limits', true)"


class Late(psycopg.OperationalError):
    """No answer in time."""


class Link(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits until `deadline` (by the monotonic clock) and no longer."""

    deadline: float = inf
    checked: bool = False  #: whether it was seen that what it answers holds
    pooled: bool = True  #: whether each transaction may have another session, so that it must bring its limits along

    def wait(self, gen: PQGen[T], *_: Any, **__: Any) -> T:
        if self.deadline == inf:
            return super().wait(gen)
        return waiting.wait(self._in_time(gen), self.pgconn.socket, interval=min(LOOK_S, max(0.0, self.deadline - monotonic())))

    def _in_time(self, gen: PQGen[T]) -> PQGen[T]:
        """What `gen` does, until it is late. Resumed after each interval; by psycopg before 3.2.11 as if all were ready."""
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    state = gen.send(ready)
                if monotonic() >= self.deadline:
                    self.pgconn.finish()  # its state is unknown, and whoever cleans up must not wait again
                    raise Late("no answer in time")
        except StopIteration as done:
            return cast(T, done.value)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come since its last answer: else the server has said goodbye."""
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)


def connect(address: Address, settings: str = "") -> Link:
    """A new connection; `settings` as libpq's `options` has them. Raises psycopg's errors."""
    login = address.login
    if settings:
        login = {**login, "options": settings}
    link = Link.connect(autocommit=True, prepare_threshold=None, context=_CONTEXT, **login)
    link.add_notice_handler(lambda _: None)
    link.deadline = monotonic() + address.timeout  # a line may fall silent right after
    return link


def milliseconds(seconds: float) -> str:
    """A time-out as PostgreSQL's settings have it; never 0, which would be none."""
    return f"{max(1, int(seconds * 1000))}ms"


def limits(timeout: float) -> str:
    """What a session that is ours alone begins with, whatever the defaults of its user and database are."""
    limit = milliseconds(timeout)
    return (
        f"-c statement_timeout={limit} -c lock_timeout={limit} -c idle_in_transaction_session_timeout={limit}"
        r" -c default_transaction_isolation=read\ committed -c default_transaction_read_only=off -c gotask.limits=heeded"
    )


class _Context:
    """What psycopg wants to be handed adapters in."""

    adapters = ADAPTERS
    connection = None


_CONTEXT: Final = _Context()


class Links:
    """The connections of this process to one server, all free but while a call runs."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.closed = False
        self._pooled = False
        self.start()
        _ALL.add(self)

    def start(self) -> None:
        """With no connections: at first, and in a forked child."""
        self._free: list[Link] = []
        self._places = threading.BoundedSemaphore(self.address.connections)

    @contextmanager
    def one(self, timeout: float) -> Iterator[Link]:
        """A connection for one call of `timeout` seconds. It is closed if the call fails in a way that leaves it in doubt."""
        if self.closed:
            raise BackendDown(f"The storage {self.address.shown} was closed; open it again.", retry_after=None)
        deadline = monotonic() + timeout
        places = self._places
        if not places.acquire(timeout=timeout):
            raise BackendDown(
                f"All {self.address.connections} connections to {self.address.shown} were busy for {timeout:g} s; try again, "
                "or raise connections in its URL."
            )
        try:
            link = self._take()
            link.deadline = deadline + GRACE_S
            try:
                yield link
            except Late:  # those that lay idle meanwhile went the same way, and each of them would cost a call its time
                self._drop()
                raise
            finally:
                self._give(link)
        finally:
            places.release()

    def connect(self) -> Link:
        """A new connection, with its limits set if it is one to PostgreSQL itself. Raises psycopg's errors."""
        login = self.address.login
        if not self._pooled and "service" not in login and "PGSERVICE" not in os.environ:  # whose options are not known here
            theirs = login.get("options", os.environ.get("PGOPTIONS", ""))
            try:
                link = connect(self.address, f"{theirs} {limits(self.address.timeout)}")
                link.pooled = link.execute(_HEEDED).fetchone() != ("heeded",)
                if not link.pooled:
                    link.prepare_threshold = 1
                    return link
                link.close()
            except psycopg.OperationalError as error:  # poolers refuse what they would not do for each session
                if "startup" not in str(error) and "option" not in str(error):
                    raise
            self._pooled = True
        return connect(self.address)

    def _take(self) -> Link:
        while True:
            try:
                link = self._free.pop()
            except IndexError:
                return self.connect()
            if not link.closed and link.is_quiet:
                return link
            link.close()

    def _give(self, link: Link) -> None:
        if not link.closed and link.pgconn.transaction_status != TransactionStatus.IDLE:
            with suppress(psycopg.Error):
                if link.pgconn.transaction_status != TransactionStatus.ACTIVE:
                    link.rollback()
        if link.closed or self.closed or link.pgconn.transaction_status != TransactionStatus.IDLE:
            link.close()
        else:
            self._free.append(link)

    def close(self) -> None:
        self.closed = True
        self._drop()

    def _drop(self) -> None:
        with suppress(IndexError):
            while True:
                self._free.pop().close()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent without a word to the server."""
        for link in self._free:
            disown(link)
        self.start()


_inherited: Final[list[Link]] = []


def disown(link: Link) -> None:
    """Close a parent's connection in its child: the descriptor only, since a goodbye would be the parent's."""
    with suppress(OSError, psycopg.Error):
        os.close(link.pgconn.socket)
    _inherited.append(link)  # for ever: its end would be told to the server


_ALL: Final[weakref.WeakSet[Links]] = weakref.WeakSet()


def _after_fork() -> None:
    for links in list(_ALL):
        links.abandon()


os.register_at_fork(after_in_child=_after_fork)
