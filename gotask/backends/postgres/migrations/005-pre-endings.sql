-- Jobs that end, or move otherwise.

-- End leases well: the plain endings, which are nearly all. Ids come in order, each once; `keeps` is how many seconds each is
-- remembered, from now or from when all was forgotten that was due by then: that is later if the clock was ahead for a while.
-- Answers those that were held, and whether somebody may wait for a place of the queue. `patience`, unless it is NULL, is how long
-- one that others hold is waited for.
CREATE FUNCTION ack_1(ids text[], leases bigint[], results bytea[], keeps float8[], at timestamptz, patience text)
RETURNS TABLE (id text, lease bigint, queue text, limited boolean) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    running text := 'RUNNING'; -- as a literal it would let the plan begin with all that run
BEGIN
    IF patience IS NOT NULL THEN
        PERFORM set_config('lock_timeout', patience, true);
    END IF;
    RETURN QUERY WITH held AS (
        SELECT f.seq, a.outcome, a.keep FROM unnest(ids, leases, results, keeps) AS a (id, lease, outcome, keep), LATERAL (
            SELECT seq FROM jobs WHERE jobs.id = a.id AND jobs.lease = a.lease AND status = running FOR UPDATE
        ) f
    ), gone AS (
        -- not by ctid: the version that was waited for is newer than what this statement sees, and is found from its older one
        DELETE FROM jobs j USING held h WHERE j.seq = h.seq RETURNING j.*, h.outcome, h.keep
    ), ended AS (
        INSERT INTO history (seq, place, lease, due_at, created_at, updated_at, expires_at, started_at, completed_at, progress,
            retry_count, crashes, priority, cancel_requested, status, id, queue, type, unique_key, worker_id, origin_queue,
            progress_note, attempts, more, payload, result)
        SELECT seq, place, lease, greatest(instant, (SELECT forgotten_until FROM tended)) + keep * interval '1 s',
            created_at, instant, expires_at, started_at, instant, progress, retry_count, crashes, priority, cancel_requested,
            'SUCCESS', id, queue, type, unique_key, worker_id, origin_queue, progress_note, attempts, more, payload, outcome
        FROM gone
        RETURNING id, lease, queue, due_at
    ), tallied AS (
        INSERT INTO tallies (queue, status, due_at, n)
        SELECT queue, 'RUNNING', NULL, -count(*) FROM ended GROUP BY queue
        UNION ALL
        SELECT queue, 'SUCCESS', due_at, count(*) FROM ended GROUP BY queue, due_at
    )
    SELECT e.id, e.lease, e.queue, e.queue = ANY (l.names) FROM ended e, (
        SELECT array_agg(r.name) AS names FROM (SELECT DISTINCT queue FROM ended) d
        JOIN records r ON r.kind = 'queue' AND r.name = d.queue AND (r.body ->> 'max_workers')::integer > 0
    ) l;
END $$;

-- Write what Python has decided of jobs that it has locked, each an object of the columns that change and its seq.
CREATE FUNCTION write_1(staying json, ending json, queues text[], statuses text[], dues timestamptz[], ns bigint[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    back bigint[]; -- seq of those given back, which keep their place
BEGIN
    IF staying IS NOT NULL THEN
        SELECT array_agg(c.seq) INTO back FROM json_populate_recordset(NULL::jobs, staying) c
        WHERE c.status = 'PENDING' AND (SELECT place FROM jobs WHERE jobs.seq = c.seq) = c.place;
        UPDATE jobs j SET (place, due_at, updated_at, started_at, completed_at, expires_at, progress, retry_count, crashes,
            cancel_requested, status, queue, worker_id, origin_queue, reason, error, progress_note, attempts, result)
            = (c.place, c.due_at, c.updated_at, c.started_at, c.completed_at, c.expires_at, c.progress, c.retry_count, c.crashes,
            c.cancel_requested, c.status, c.queue, c.worker_id, c.origin_queue, c.reason, c.error, c.progress_note, c.attempts,
            c.result)
        FROM json_populate_recordset(NULL::jobs, staying) c,
            LATERAL (SELECT ctid AS at FROM jobs WHERE jobs.seq = c.seq OFFSET 0) f WHERE j.ctid = f.at;
        IF back IS NOT NULL THEN
            PERFORM lane_1(queue) FROM (SELECT DISTINCT queue FROM jobs WHERE seq = ANY (back) ORDER BY queue) q;
            UPDATE lanes l SET floors = ARRAY (
                SELECT least(f.place, (SELECT min(place) FROM jobs WHERE seq = ANY (back) AND queue = l.queue AND priority = p - 1))
                FROM unnest(l.floors) WITH ORDINALITY AS f (place, p) ORDER BY p
            ) WHERE queue = ANY (ARRAY (SELECT queue FROM jobs WHERE seq = ANY (back))) AND floors IS NOT NULL;
        END IF;
    END IF;
    IF ending IS NOT NULL THEN
        WITH gone AS (
            DELETE FROM jobs j USING json_array_elements(ending) AS c (value),
                LATERAL (SELECT ctid AS at FROM jobs WHERE jobs.seq = (c.value ->> 'seq')::bigint OFFSET 0) f
            WHERE j.ctid = f.at RETURNING j AS job, c.value
        )
        INSERT INTO history SELECT r.* FROM gone, LATERAL json_populate_record(gone.job, gone.value) r;
    END IF;
    INSERT INTO tallies (queue, status, due_at, n) SELECT * FROM unnest(queues, statuses, dues, ns);
END $$;

-- Bring jobs back from `history` that Python has locked there; answers those that could: not if another holds an id or a key.
CREATE FUNCTION revive_1(coming json) RETURNS TABLE (seq bigint) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH new AS (
        INSERT INTO jobs SELECT r.* FROM json_array_elements(coming) WITH ORDINALITY AS c (value, at)
            , LATERAL (SELECT h FROM history h WHERE h.id = c.value ->> 'id' AND h.seq = (c.value ->> 'seq')::bigint OFFSET 0) f
            , LATERAL json_populate_record(f.h, c.value) r
            ORDER BY c.at
        ON CONFLICT DO NOTHING RETURNING id, seq
    ), gone AS (
        DELETE FROM history h WHERE h.id = ANY (ARRAY (SELECT id FROM new)) AND h.seq = ANY (ARRAY (SELECT seq FROM new))
    )
    SELECT seq FROM new;
END $$;

-- Delete what neither runs nor has ended; the ids of what was there. All are locked in the order in which everybody locks jobs,
-- and only then deleted.
CREATE FUNCTION drop_waiting_1(ids text[]) RETURNS SETOF text LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    RETURN QUERY WITH gone AS (
        DELETE FROM jobs WHERE seq = ANY (ARRAY (
            SELECT seq FROM jobs WHERE id = ANY (ids) AND status <> 'RUNNING' ORDER BY id FOR UPDATE
        )) RETURNING id, queue, status
    ), tallied AS (
        INSERT INTO tallies (queue, status, n) SELECT queue, status, -count(*) FROM gone GROUP BY queue, status
    )
    SELECT id FROM gone;
END $$;

-- The same of what has ended.
CREATE FUNCTION drop_ended_1(ids text[]) RETURNS SETOF text LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    RETURN QUERY WITH gone AS (
        DELETE FROM history WHERE due_at > (SELECT forgotten_until FROM tended) AND id = ANY (ARRAY (
            SELECT id FROM history WHERE id = ANY (ids) AND due_at > (SELECT forgotten_until FROM tended) ORDER BY id FOR UPDATE
        )) RETURNING id, queue, status, due_at
    ), tallied AS (
        INSERT INTO tallies (queue, status, due_at, n)
        SELECT queue, status, due_at, -count(*) FROM gone GROUP BY queue, status, due_at
    )
    SELECT id FROM gone;
END $$;
