"""The bare limit of PostgreSQL: what one client gets through if a job is four columns, and nothing is promised about it.

No fences, no counts, no priorities, no results, no doorbell: only what any queue with a history must do. A batch is leased by
one UPDATE, and moved to the history by one statement; each is a transaction, on the disk before it is answered.
"""

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
SETTLE: Final = """
WITH gone AS (DELETE FROM bare.jobs WHERE id = ANY (%s) AND running RETURNING id, payload)
INSERT INTO bare.history SELECT id, payload, now() FROM gone
"""


class Bare:
    """A queue of one client."""

    def __init__(self, url: str) -> None:
        self._link = psycopg.connect(url, autocommit=True, prepare_threshold=1)
        for statement in TABLES:
            self._link.execute(statement)

    def fill(self, payload: bytes, count: int) -> None:
        self._link.execute(FILL, (payload, count))

    def drain(self, batch: int) -> float:
        """Jobs per second until none is left."""
        begun, ended = time.perf_counter(), 0
        while found := self._link.execute(LEASE, (batch,), binary=True).fetchall():
            ended += self._link.execute(SETTLE, ([id for id, _ in found],)).rowcount
        return ended / (time.perf_counter() - begun)

    def close(self) -> None:
        self._link.execute("DROP SCHEMA bare CASCADE")
        self._link.close()
