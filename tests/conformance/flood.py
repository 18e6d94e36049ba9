"""A PostgreSQL storage with millions of jobs, written past all functions, and with the statistics of quite other ones."""

from typing import Final

import psycopg

from tests.servers.postgres import Postgres

#: rows that are there when the statistics are taken, and gone when they are used
OTHERS: Final = """
INSERT INTO jobs (seq, place, due_at, created_at, updated_at, priority, status, id, queue, type, payload, lease)
SELECT -n, -n, now() - interval '1 h', now(), now(), 5, 'RUNNING', 'other' || n, 'other', 'other', '{}', n
FROM generate_series(1, 2000) n;
INSERT INTO history (seq, place, due_at, created_at, updated_at, priority, status, id, queue, type, payload)
SELECT -n - 5000, -n, now() + interval '1 h' * (n % 100), now(), now(), 5, 'FAILED', 'gone' || n, 'other', 'other', '{}'
FROM generate_series(1, 2000) n;
"""
#: most wait, in queues and by priorities of unlike size; some run, of which few have lapsed; some are for later
LIVE: Final = """
INSERT INTO jobs (seq, place, created_at, updated_at, started_at, priority, status, due_at, id, queue, type, unique_key,
    worker_id, lease, payload)
SELECT nextval('places'), currval('places'), now(), now(), now(), CASE WHEN n %% 10 = 0 THEN n %% 7 ELSE 1 END, s.status,
    CASE s.status WHEN 'RUNNING' THEN now() + CASE WHEN n %% 5000 = 1 THEN -interval '1 s' ELSE interval '1 h' END
        WHEN 'PENDING' THEN CASE WHEN n %% 6000 = 7 THEN now() - interval '1 s' END
        ELSE now() + n * interval '1 s' END,
    'j' || n, CASE WHEN n %% 50000 = 0 THEN 'rare' WHEN n %% 3 = 0 THEN 'mail' ELSE 'default' END, 'echo',
    CASE WHEN n %% 10 = 0 THEN 'k' || n END, CASE s.status WHEN 'RUNNING' THEN 'node-' || n %% 50 END,
    CASE s.status WHEN 'RUNNING' THEN n ELSE 0 END, '{"a": 1}'
FROM generate_series(1, %(half)s) n, LATERAL (SELECT CASE WHEN n %% 50 = 1 AND n < 100000 THEN 'RUNNING'
    WHEN n %% 10 = 2 THEN 'SCHEDULED' WHEN n %% 20 = 3 THEN 'RETRYING' ELSE 'PENDING' END AS status) s
"""
#: most succeeded; some are due to be forgotten
FINISHED: Final = """
INSERT INTO history (seq, place, created_at, updated_at, completed_at, priority, status, due_at, id, queue, type, unique_key,
    worker_id, payload, result)
SELECT nextval('places'), currval('places'), now(), now(), now(), 1, s.status,
    now() + interval '1 s' * (n::float8 / %(half)s * CASE s.status WHEN 'SUCCESS' THEN 86400 ELSE 7 * 86400 END - 600),
    'h' || n, CASE WHEN n %% 50000 = 0 THEN 'rare' WHEN n %% 3 = 0 THEN 'mail' ELSE 'default' END, 'echo',
    CASE WHEN n %% 10 = 0 THEN 'hk' || n END, 'node-' || n %% 50, '{"a": 1}', '1'
FROM generate_series(1, %(half)s) n, LATERAL (SELECT CASE WHEN n %% 30 = 1 THEN 'FAILED' WHEN n %% 100 = 2 THEN 'CANCELLED'
    WHEN n %% 500 = 3 THEN 'EXPIRED' ELSE 'SUCCESS' END AS status) s
"""
SUMS: Final = """
INSERT INTO counts SELECT queue, status, 'infinity', count(*) FROM jobs GROUP BY 1, 2;
INSERT INTO counts
SELECT queue, status, date_trunc('minute', due_at) + interval '1 minute', count(*) FROM history GROUP BY 1, 2, 3;
INSERT INTO tallies SELECT 'default', 'PENDING', NULL, 0 FROM generate_series(1, 400);
"""


def flood(server: Postgres, schema: str, rows: int) -> None:
    """Half of the rows are jobs that are live, half have ended. The statistics are those of OTHERS."""
    with psycopg.connect(server.url, autocommit=True) as link:
        link.execute(f'SET search_path TO "{schema}"'.encode())
        link.execute(OTHERS)
        for table in ("jobs", "history"):
            for verb in ("VACUUM ANALYZE", "DELETE FROM", "VACUUM"):
                link.execute(f"{verb} {table}".encode())
        for half in (LIVE, FINISHED):
            link.execute(half, {"half": rows // 2})
        link.execute(SUMS)
