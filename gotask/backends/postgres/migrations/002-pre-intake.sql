-- What changes jobs. A function's number is part of its name: a later one comes beside it, so that nodes of two versions can
-- share a store, and goes only in a `post` step. `at` is the time, NULL for the server's own clock.
--
-- What the tables hold changes from empty to millions and back within minutes, so plans must not follow their statistics: each
-- function is planned once, for the indexes that were made for it. Rows that arrays name are looked up one by one in a LATERAL
-- subquery, which no planner turns around: a join could begin with the whole table instead, while that looks small. A way that
-- is off looks so dear that a plan which takes it after all would be compiled first, for half a second; hence no jit.

-- Accept jobs, given as arrays of one length or NULL for what none of them says. Answers those that are new.
-- Whoever ends a job removes it from `jobs` and puts it into `history` at once. So an id is looked for in `history` after it
-- went into `jobs`, by a statement that sees all that was committed until then: at no instant can it be missed in both.
CREATE FUNCTION enqueue_1(
    ids text[], types text[], queues text[], priorities smallint[], payloads bytea[],
    delays float8[], scheduled timestamptz[], expires timestamptz[], keys text[], mores text[],
    named text[], -- those of the ids that may be known already; the others were just made
    at timestamptz,
    OUT id text, OUT status text, OUT due_at timestamptz, OUT created_at timestamptz
) RETURNS SETOF record LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    made record;
    known text[];
BEGIN
    WITH asked AS MATERIALIZED (
        SELECT nextval('places') AS seq, a.*, greatest(instant + coalesce(a.delay, 0) * interval '1 s', a.wakes) AS wakes_at
        FROM unnest(ids, types, queues, priorities, payloads, delays, scheduled, expires, keys, mores)
            AS a (id, type, queue, priority, payload, delay, wakes, expires, key, more)
    ), new AS (
        INSERT INTO jobs (seq, place, id, type, queue, priority, payload, expires_at, unique_key, more, created_at, updated_at,
            status, due_at)
        SELECT seq, seq, id, type, queue, priority, payload, expires, key, more, instant, instant,
            CASE WHEN wakes_at > instant THEN 'SCHEDULED' ELSE 'PENDING' END,
            CASE WHEN wakes_at > instant THEN wakes_at ELSE expires END
        FROM asked ORDER BY id -- the order in which all lock jobs, lest two wait for each other
        ON CONFLICT DO NOTHING
        RETURNING id, queue, status, due_at
    ), tallied AS (
        INSERT INTO tallies (queue, status, n) SELECT queue, status, count(*) FROM new GROUP BY queue, status
    )
    SELECT array_agg(id) AS ids, array_agg(status) AS statuses, array_agg(due_at) AS dues INTO made FROM new;

    IF named <> '{}' THEN
        SELECT array_agg(h.id) INTO known FROM history h
        WHERE h.id = ANY (named) AND h.id = ANY (made.ids) AND h.due_at > (SELECT forgotten_until FROM tended);
        WITH gone AS (
            DELETE FROM jobs j WHERE j.id = ANY (known) RETURNING queue, status
        )
        INSERT INTO tallies (queue, status, n) SELECT queue, status, -count(*) FROM gone GROUP BY queue, status;
    END IF;
    RETURN QUERY SELECT m.id, m.status, m.due_at, instant
        FROM unnest(made.ids, made.statuses, made.dues) AS m (id, status, due_at)
        WHERE known IS NULL OR m.id <> ALL (known);
END $$;

-- Jobs by their ids, wherever they are, and by the unique keys that they hold; one that has both may come twice. Not STABLE: then it
-- would see what was there before it waited for the table of a new day, and miss what had moved into that.
CREATE FUNCTION standing_1(ids text[], keys text[]) RETURNS SETOF jobs LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT * FROM jobs WHERE id = ANY (ids)
        UNION ALL SELECT * FROM history WHERE id = ANY (ids) AND due_at > (SELECT forgotten_until FROM tended)
        UNION ALL SELECT * FROM jobs WHERE unique_key = ANY (keys);
END $$;
