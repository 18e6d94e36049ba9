"""Transactions, each with a deadline, and what PostgreSQL or the network says as errors of ours.

A transaction is one round trip if it can be: one statement by itself, or all of them sent at once. A connection to PostgreSQL
itself knows its limits from its start (see link.py); behind a pooler, which may give each transaction another session, nothing
is left to the session, and each transaction begins by setting them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeVar

import psycopg

from gotask.backends.postgres import migrations, sql
from gotask.backends.postgres.address import Address
from gotask.backends.postgres.link import Link, Links, milliseconds
from gotask.backends.postgres.sentences import refusal, translated
from gotask.errors import BackendDown, NotConfigured

T = TypeVar("T")
Rows = list[tuple[Any, ...]]

TRIES: Final = 8  #: times a transaction is tried that others were in the way of
#: others were in the way. A check is violated by a row on its way to `history_rest` while its day gets a table of its own
_IN_THE_WAY: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.CheckViolation)
#: what was prepared is no more, or has another result since a migration
_STALE: Final = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.FeatureNotSupported)
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"  #: whatever the database's default is
_LIMITS: Final = (
    "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true),"
    " set_config('idle_in_transaction_session_timeout', %s, true)"
)
_FACTS: Final = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding'),"
    " current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),"
    " pg_is_in_recovery(), current_setting('synchronous_standby_names') <> ''"
)


class Txn:
    """A transaction under way. What `ask` is given at once goes to the server at once."""

    def __init__(self, link: Link, statements: Any, timeout: float) -> None:
        self._link, self._statements = link, statements
        self._limit = milliseconds(timeout)
        self._begun = False
        self.done = False

    def ask(self, *calls: tuple[Any, ...], last: bool = False) -> list[Rows]:
        """The rows of statements, each given as its name and values; with `last` the transaction ends with them."""
        link = self._link
        if last and not self._begun and len(calls) == 1 and not link.pooled:
            cursors = self._execute(calls)
        else:
            # only at its end: after a pipeline a server does not watch over what stays idle in a transaction
            with link.pipeline() if last else nullcontext():
                if not self._begun:
                    link.execute(_BEGIN)
                    if link.pooled:
                        link.execute(_LIMITS, [self._limit] * 3)
                cursors = self._execute(calls)
                if last:
                    link.execute("COMMIT")
        self._begun, self.done = True, last
        return [cursor.fetchall() if _has_rows(cursor) else [] for cursor in cursors]

    def limit(self, lock_s: float) -> None:
        """From now on wait for no lock for longer."""
        self.ask((_LIMITS, self._limit, milliseconds(lock_s), self._limit))

    def _execute(self, calls: tuple[tuple[Any, ...], ...]) -> list[Any]:
        return [self._link.execute(self._statements.get(name, name), values, binary=True) for name, *values in calls]


def _has_rows(cursor: Any) -> bool:
    """Its `description` says that too, and is made anew for each statement."""
    return bool(cursor.pgresult.nfields)


class Server:
    """The PostgreSQL that an address names. Made without any I/O; the first call checks what is there."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.links = Links(address)
        self.statements = sql.statements(address.schema)
        self._guard = threading.Lock()
        self._checked = False
        self.failed = 0  #: calls so far: after one, whoever listens may have become deaf too
        self.facts: tuple[Any, ...] = ()

    def call(self, name: str, *values: Any) -> Rows:
        """The rows of one statement, in a transaction of its own."""
        return self.transact(lambda txn: txn.ask((name, *values), last=True)[0])

    def transact(self, work: Callable[[Txn], T]) -> T:
        """Do `work` in one transaction: all of it or nothing; again from its start if others were in the way.

        Raises BackendDown when there is no answer in time, or none that helps.
        """
        timeout = self.address.timeout
        for tried in range(TRIES):
            with self.told(), self.links.one(timeout) as link:
                self._check(link)
                txn = Txn(link, self.statements, timeout)
                try:
                    answer = work(txn)
                    if not txn.done:
                        txn.ask(last=True)
                    return answer
                except (*_IN_THE_WAY, *_STALE) as error:
                    if tried + 1 == TRIES:
                        raise
                    if isinstance(error, _STALE):
                        link.close()
                except BaseException:
                    if link.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                        link.close()
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def told(self) -> Iterator[None]:
        """What PostgreSQL or the network says meanwhile becomes an error of ours."""
        try:
            yield
        except (psycopg.Error, OSError) as error:
            self.failed += 1
            raise translated(self.address, error) from error

    def _check(self, link: Link) -> None:
        """Refuse servers and sessions that would lose jobs, and make the tables if there are none."""
        if link.checked:
            return
        (facts,) = link.execute(_FACTS).fetchall()
        why = refusal(self.address, facts)
        if why:
            link.close()  # a session keeps what it began with
            raise NotConfigured(why)
        if facts[6]:
            raise BackendDown(
                f"PostgreSQL at {self.address.shown} is a standby, and takes no writes; a failover may be under way, so "
                "try again, or name the primary."
            )
        with self._guard:
            if not self._checked:
                link.deadline += migrations.BUSY_S
                migrations.prepare(link, self.address)
            self.facts, self._checked, link.checked = facts, True, True

    def ready(self) -> None:
        """See that the store is there and fit, if nothing has asked it yet."""
        if not self._checked:
            self.call("get record", "", "")

    def promise(self) -> str:
        """What an answered enqueue survives, by how PostgreSQL writes to its disk."""
        self.ready()
        _, _, _, fsync, pages, commit, _, standbys = self.facts
        survives = "Once enqueue has answered, a job survives"
        if fsync != "on" or pages != "on":
            return f"{survives} a crash of GoTask or PostgreSQL; loss of power may cost the whole database (fsync {fsync})."
        if commit == "off":
            return f"{survives} a crash of GoTask, but one of PostgreSQL may cost the last second (synchronous_commit off)."
        if standbys and commit in ("on", "remote_apply"):
            return f"{survives} a crash of GoTask or PostgreSQL, loss of power, and a failover (synchronous_commit {commit})."
        return f"{survives} a crash of GoTask or PostgreSQL and loss of power (synchronous_commit {commit})."

    def close(self) -> None:
        self.links.close()
