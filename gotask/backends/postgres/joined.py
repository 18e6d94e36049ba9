"""Jobs enqueued, or completed, in a transaction of the caller's own: once it commits, and never if it does not."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from gotask.backends.fields import check_texts
from gotask.backends.postgres import rows
from gotask.backends.postgres.intake import Intake
from gotask.backends.postgres.moving import ack
from gotask.backends.postgres.server import TRIES, Rows, Server
from gotask.errors import InvalidInput, LeaseLost
from gotask.model import Enqueued, NewJob, Settlement
from gotask.payload import NULL
from gotask.states import Event

_ISOLATION: Final = "SELECT current_setting('transaction_isolation')"
_SPOIL: Final = "DO $$ BEGIN RAISE EXCEPTION 'the lease of a job was lost'; END $$"
_NOTIFY: Final = "SELECT pg_notify(%s, topic) FROM unnest(%s) topic"


class Joined:
    """Takes jobs over one connection of the caller's, and neither begins nor ends anything on it."""

    def __init__(self, server: Server, channel: str, connection: Any) -> None:
        self._server, self._channel = server, channel
        link = _psycopg(connection)
        if link.autocommit and link.pgconn.transaction_status == TransactionStatus.IDLE:
            raise InvalidInput(
                "connection: it commits each statement by itself; use it inside of `with connection.transaction()`."
            )
        self._cursor = link.cursor(binary=True, row_factory=tuple_row)
        rows.register(self._cursor.adapters)

    def enqueue_many(self, jobs: Sequence[NewJob], at: datetime | None = None, notify: bool = False) -> list[Enqueued]:
        """As the Backend's; with `notify` the commit tells nodes. An error spoils the caller's transaction."""
        if not jobs:
            return []
        check_texts(jobs, "unique_key")
        self._server.ready()
        with self._server.told():
            if any(new.id for new in jobs):
                self._check_isolation()
            intake = Intake(self._call, jobs, at)
            answers = intake.answers()
            if notify and intake.queues:
                topics = [f"queue:{queue}" for queue in sorted(intake.queues)]
                self._cursor.execute(_NOTIFY, (self._channel, rows.texts(topics)))
            elif intake.queues:
                self._cursor.execute(self._server.statements["call"], (rows.texts(sorted(intake.queues)),), prepare=False)
        return answers

    def complete(self, id: str, lease: int, result: bytes) -> None:
        """End a job well, under the lease of its run.

        Raises LeaseLost if it is not held, and spoils the transaction: it cannot commit, whatever becomes of the error.
        """
        ending = Settlement(id, lease, Event.ACK, result=None if result == NULL else result)
        with self._server.told():
            if self._again_if_moved(*ack([ending], None)):
                return
            with suppress(psycopg.errors.RaiseException):
                self._cursor.execute(_SPOIL, prepare=False)
        raise LeaseLost(
            f"Job {id} is not held by this run any more (it was cancelled, has ended, or is another's by now); let this error "
            "pass, so that nothing of your transaction is kept."
        )

    def _again_if_moved(self, name: str, *values: Any) -> Rows:
        """`_call` for what writes to `history`: once a day the row's place there gets a table of its own meanwhile."""
        for _ in range(TRIES):
            self._cursor.execute("SAVEPOINT gotask")
            try:
                found = self._call(name, *values)
            except psycopg.errors.CheckViolation:
                self._cursor.execute("ROLLBACK TO SAVEPOINT gotask")
                continue
            self._cursor.execute("RELEASE SAVEPOINT gotask")
            return found
        return self._call(name, *values)

    def _call(self, name: str, *values: Any) -> Rows:
        return self._cursor.execute(self._server.statements[name], values, prepare=False).fetchall()

    def _check_isolation(self) -> None:
        """A known id is found by looking again, which a transaction that sees one instant only cannot."""
        ((level,),) = self._cursor.execute(_ISOLATION).fetchall()
        if level != "read committed":
            raise InvalidInput(
                f"connection: in a transaction that is {level} a job cannot have an id of yours; use read committed."
            )


def _psycopg(connection: Any) -> psycopg.Connection[Any]:
    """The psycopg connection of what was given: itself, or that of an SQLAlchemy session or connection."""
    found = connection
    if not isinstance(found, psycopg.Connection) and callable(getattr(found, "connection", None)):
        found = found.connection()
    if not isinstance(found, psycopg.Connection):
        found = getattr(getattr(found, "connection", None), "driver_connection", None)
    if isinstance(found, psycopg.Connection):
        return found
    raise InvalidInput(
        f"connection: it is a {type(connection).__name__}; give one of psycopg 3, or an SQLAlchemy session or connection "
        "whose URL begins with postgresql+psycopg://."
    )
