"""The bare limit of PostgreSQL: what one client gets through if a job is four columns, and nothing is promised about it.

No fences, no counts, no priorities, no results, no doorbell: only what any queue with a history must do. A batch is leased by
one UPDATE, and moved to the history by one statement; each is a transaction, on the disk before it is answered.
"""

import threading
import time
from typing import Final

import psycopg

TABLES: Final = (
    "CREATE SCHEMA bare",
    "CREATE TABLE bare.jobs (id bigint PRIMARY KEY, running boolean NOT NULL DEFAULT false, payload bytea NOT NULL,"
    " lapses_at timestamptz)",
    "CREATE INDEX ready ON bare.jobs (id) WHERE NOT running",
    "CREATE TABLE bare.history (id bigint NOT NULL, payload bytea NOT NULL, ended_at timestamptz NOT NULL)",
    "CREATE SEQUENCE bare.ids",
)
FILL: Final = "INSERT INTO bare.jobs (id, payload) SELECT nextval('bare.ids'), %s FROM generate_series(1, %s)"
LEASE: Final = """
UPDATE bare.jobs SET running = true, lapses_at = now() + interval '30 s' WHERE id = ANY (ARRAY (
    SELECT id FROM bare.jobs WHERE NOT running ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
)) RETURNING id, payload
"""
ENQUEUE: Final = "INSERT INTO bare.jobs (id, payload) VALUES (nextval('bare.ids'), %s)"
SETTLE: Final = """
WITH gone AS (DELETE FROM bare.jobs WHERE id = ANY (%s) AND running RETURNING id, payload)
INSERT INTO bare.history SELECT id, payload, now() FROM gone
"""


class Bare:
    """A queue of one client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._link = psycopg.connect(url, autocommit=True, prepare_threshold=1)
        for statement in TABLES:
            self._link.execute(statement)

    def fill(self, payload: bytes, count: int) -> None:
        self._link.execute(FILL, (payload, count))

    def enqueue(self, payload: bytes) -> None:
        """Accept one."""
        self._link.execute(ENQUEUE, (payload,))

    def pickups(self, pauses: list[float], payload: bytes) -> list[float]:
        """Seconds from before each enqueue until another thread, told of it by NOTIFY, has leased it; a pause before each."""
        leased: list[float] = []
        with psycopg.connect(self._url, autocommit=True) as ear, psycopg.connect(self._url, autocommit=True) as link:
            link.prepare_threshold = 1
            ear.execute("LISTEN bare")

            def lease() -> None:
                for _ in ear.notifies(stop_after=len(pauses)):
                    assert link.execute(LEASE, (1,), binary=True).fetchall()
                    leased.append(time.perf_counter())

            taker = threading.Thread(target=lease)
            taker.start()
            begun = []
            for pause in pauses:
                time.sleep(pause)
                begun.append(time.perf_counter())
                self.enqueue(payload)
                self._link.execute("NOTIFY bare")
            taker.join()
        return [end - start for start, end in zip(begun, leased, strict=True)]

    def drain(self, batch: int) -> float:
        """Jobs per second until none is left."""
        begun, ended = time.perf_counter(), 0
        while found := self._link.execute(LEASE, (batch,), binary=True).fetchall():
            ended += self._link.execute(SETTLE, ([id for id, _ in found],)).rowcount
        return ended / (time.perf_counter() - begun)

    def close(self) -> None:
        self._link.execute("DROP SCHEMA bare CASCADE")
        self._link.close()
