"""The PostgreSQL server that benchmarks run on, what fills and empties a store on it, and what it says of itself."""

import time
from collections.abc import Mapping
from typing import Final

from bench.node import PAYLOAD
from gotask.backends import Backend
from gotask.model import NewJob, Settlement
from gotask.states import Event
from tests.servers.postgres import Postgres

#: postgresql.conf of a small server that somebody looks after. Nothing here trades safety for speed: each commit that is waited
#: for is on the disk (fsync, synchronous_commit), and torn pages are repaired (full_page_writes).
SETTINGS: Final[Mapping[str, object]] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "effective_cache_size": "4GB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "wal_compression": "on",
    "autovacuum": "on",
    "autovacuum_naptime": "10s",
    "max_connections": 300,
}
OWNER: Final = "bench-0123456789abcdef"
LEASE_S: Final = 30.0
BATCH: Final = 1000  #: jobs leased and settled at once, as a busy node does
LOAD: Final = 10_000  #: jobs of one call when a store is filled

#: All of a store but its history: finished jobs are kept on purpose, and rightly take room.
SIZES: Final = """
SELECT c.relname, c.relkind::text, pg_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid
LEFT JOIN pg_class t ON t.oid = i.indrelid
WHERE n.nspname = %s AND c.relkind IN ('r', 'i') AND coalesce(t.relname, c.relname) NOT LIKE 'history%%'
"""
TRANSACTIONS: Final = """
SELECT pg_stat_clear_snapshot(), sum(xact_commit + xact_rollback) FROM pg_stat_database WHERE datname IS NOT NULL
"""


def load(backend: Backend, count: int, queue: str = "default") -> None:
    """Accept `count` no-op jobs in large batches."""
    for at in range(0, count, LOAD):
        backend.enqueue_many([NewJob(type="noop", payload=PAYLOAD, queue=queue) for _ in range(min(LOAD, count - at))])


def lease_and_settle(backend: Backend, count: int, batch: int = BATCH) -> float:
    """Lease and ack that many waiting jobs; jobs per second."""
    begun, left = time.perf_counter(), count
    while left > 0:
        jobs = backend.lease({"default": min(batch, left)}, OWNER, LEASE_S)
        assert jobs, f"{left} jobs should still be waiting"
        backend.settle_many([Settlement(job.id, job.lease, Event.ACK, result=b"null") for job in jobs])
        left -= len(jobs)
    return count / (time.perf_counter() - begun)


def sizes(server: Postgres, schema: str) -> dict[str, dict[str, int]]:
    """Bytes of each table and of each index of a store, without its history."""
    found: dict[str, dict[str, int]] = {"tables": {}, "indexes": {}}
    for name, kind, size in server.command(SIZES, schema):
        found["tables" if kind == "r" else "indexes"][name] = size
    return found


def transactions(server: Postgres) -> int:
    """How many the server has ended, in all of its databases, its own included."""
    return int(server.command(TRANSACTIONS)[0][1])
