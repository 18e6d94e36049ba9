-- What the storage asks: one statement each, by name, beside the functions of migrations/. `gotask` stands for the schema's
-- name, and `%s` for a value; `{columns}` is every column of a job, and `{standing}` what is read of one that is to be moved, whose
-- value is the time. A statement that says {lazy} is not waited for on the disk: a crash of the server may undo it, because doing
-- it again is all that follows.

-- enqueue --
SELECT id, status, due_at, created_at FROM gotask.enqueue_1(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)

-- standing --
SELECT {columns} FROM gotask.standing_1(%s, %s)

-- lease --
SELECT {columns} FROM {lazy}, gotask.lease_1(%s, %s, %s, %s, %s)

-- extend --
SELECT id, lease, cancel FROM {lazy}, gotask.extend_1(%s, %s, %s, %s, %s, %s)

-- ack --
SELECT id, lease, queue, limited FROM gotask.ack_1(%s, %s, %s, %s, %s, %s)

-- lock live jobs --
SELECT {standing}
FROM (SELECT * FROM gotask.jobs WHERE id = ANY (%s) ORDER BY id FOR UPDATE) j

-- lock finished jobs --
SELECT {standing}
FROM (SELECT * FROM gotask.history WHERE id = ANY (%s)
    AND due_at > (SELECT forgotten_until FROM gotask.tended) ORDER BY id FOR UPDATE) j

-- lock due jobs --
SELECT {standing}
FROM gotask.due_1(%s, %s, %s)

-- write --
SELECT gotask.write_1(%s, %s, %s, %s, %s, %s)

-- revive --
SELECT seq FROM gotask.revive_1(%s)

-- drop waiting jobs --
SELECT * FROM gotask.drop_waiting_1(%s)

-- drop ended jobs --
SELECT * FROM gotask.drop_ended_1(%s)

-- count --
SELECT queue, status, sum(n)::bigint FROM (
    SELECT queue, status, n FROM gotask.tallies UNION ALL SELECT queue, status, n FROM gotask.counts
) added GROUP BY queue, status HAVING sum(n) <> 0

-- next due --
SELECT lapse, rest, untended, tallied FROM gotask.next_due_1(%s, %s, %s)

-- forget --
SELECT gotask.forget_1(%s, %s)

-- fold --
SELECT gotask.fold_1(%s) FROM {lazy}

-- tend --
SELECT gotask.tend_1(%s, %s)

-- survey --
SELECT gotask.survey_1(%s, %s) FROM {lazy}

-- get record --
SELECT version, body::text FROM gotask.records WHERE kind = %s AND name = %s

-- all records --
SELECT version, body::text FROM gotask.records WHERE kind = %s ORDER BY name

-- put record --
INSERT INTO gotask.records AS r (kind, name, version, body) VALUES (%s, %s, 1, %s)
ON CONFLICT (kind, name) DO UPDATE SET version = r.version + 1, body = excluded.body RETURNING version

-- put new record --
INSERT INTO gotask.records (kind, name, version, body) VALUES (%s, %s, 1, %s) ON CONFLICT DO NOTHING RETURNING version

-- put known record --
UPDATE gotask.records SET version = version + 1, body = %s WHERE kind = %s AND name = %s AND version = %s RETURNING version

-- drop record --
DELETE FROM gotask.records WHERE kind = %s AND name = %s AND (version = %s OR %s) RETURNING version

-- note waits --
INSERT INTO gotask.waits SELECT id, now() + %s * interval '1 s' FROM {lazy}, unnest(%s) id
ON CONFLICT (id) DO UPDATE SET believed_until = excluded.believed_until

-- call --
INSERT INTO gotask.calls (queue) SELECT * FROM unnest(%s)

-- pass calls on --
WITH gone AS (
    DELETE FROM gotask.calls WHERE ctid = ANY (ARRAY (SELECT ctid FROM gotask.calls FOR UPDATE SKIP LOCKED)) RETURNING queue
)
SELECT pg_notify(%s, 'queue:' || queue) FROM {lazy}, (SELECT DISTINCT queue FROM gone) called

-- ring --
SELECT pg_notify(%s, topic) FROM {lazy}, unnest(%s) topic
UNION ALL SELECT pg_notify(%s, 'job:' || id) FROM gotask.waits WHERE id = ANY (%s)

-- lock free live jobs --
SELECT id, lease FROM gotask.jobs WHERE id = ANY (%s) ORDER BY id FOR UPDATE SKIP LOCKED

-- live jobs --
SELECT id FROM gotask.jobs WHERE id = ANY (%s)

-- lock free finished jobs --
SELECT id FROM gotask.history WHERE id = ANY (%s) AND due_at > (SELECT forgotten_until FROM gotask.tended)
ORDER BY id FOR UPDATE SKIP LOCKED

-- finished jobs --
SELECT id FROM gotask.history WHERE id = ANY (%s) AND due_at > (SELECT forgotten_until FROM gotask.tended)

-- completing jobs --
SELECT id, lease, status, NULL AS waited_for FROM gotask.jobs WHERE id = ANY (%s)
UNION ALL
SELECT h.id, h.lease, h.status, r.name FROM gotask.history h
LEFT JOIN gotask.records r ON r.kind = 'queue' AND r.name = h.queue AND (r.body ->> 'max_workers')::integer > 0
WHERE h.id = ANY (%s)

-- holds vacuum back --
SELECT * FROM (
    SELECT 'transaction' AS kind, a.pid::text AS name, a.usename::text AS owner, a.application_name AS program,
        a.state AS state, a.xact_start AS since, greatest(age(a.backend_xid), age(a.backend_xmin)) AS behind
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
        AND coalesce(a.backend_xid, a.backend_xmin) IS NOT NULL AND a.pid NOT IN (SELECT v.pid FROM pg_stat_progress_vacuum v)
    UNION ALL
    SELECT 'prepared transaction', p.gid, p.owner::text, NULL, NULL, p.prepared, age(p.transaction)
    FROM pg_prepared_xacts p WHERE p.database = current_database()
    UNION ALL
    SELECT 'standby', a.pid::text, a.usename::text, a.application_name, NULL, NULL, age(a.backend_xmin)
    FROM pg_stat_activity a WHERE a.backend_type = 'walsender' AND a.backend_xmin IS NOT NULL
    UNION ALL
    SELECT 'replication slot', s.slot_name::text, NULL, NULL, NULL, NULL, age(s.xmin)
    FROM pg_replication_slots s WHERE s.xmin IS NOT NULL
) pins
WHERE since < clock_timestamp() - %s * interval '1 s' OR (since IS NULL AND behind > %s)
ORDER BY since NULLS LAST, behind DESC
