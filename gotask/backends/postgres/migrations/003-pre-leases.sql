-- Who is leased what, and for how long.

-- The lane of a queue, locked.
CREATE FUNCTION lane_1(name text) RETURNS lanes LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    lane lanes;
BEGIN
    SELECT * INTO lane FROM lanes WHERE queue = name FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO lanes (queue) VALUES (name) ON CONFLICT DO NOTHING;
        SELECT * INTO lane FROM lanes WHERE queue = name FOR UPDATE;
    END IF;
    RETURN lane;
END $$;

-- What the record of a queue, `rules`, and its lane, which is locked, allow of `want` starts now; and its bucket, filled.
CREATE FUNCTION allowed_1(rules json, lane lanes, want integer, instant timestamptz, OUT starts integer, OUT bucket float8)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    most integer := coalesce((rules ->> 'max_workers')::integer, 0);
    rate float8 := coalesce((rules ->> 'rate_limit')::float8, 0);
BEGIN
    starts := want;
    IF most > 0 THEN
        starts := least(starts, most - (SELECT count(*) FROM jobs WHERE status = 'RUNNING' AND queue = lane.queue));
    END IF;
    IF rate > 0 THEN -- it holds a second's worth, and at least one start; a clock that stepped back goes on from there
        bucket := coalesce(lane.tokens, greatest(1, rate));
        IF lane.filled_at <= instant THEN
            bucket := least(greatest(1, rate), bucket + extract(epoch FROM instant - lane.filled_at) * rate);
        END IF;
        starts := least(starts, floor(bucket + 1e-9));
    END IF;
    starts := greatest(starts, 0);
END $$;

-- The next `n` of a queue in order, locked, of which the last `aged` are the oldest of the rest. One range of the index per
-- priority, each from its floor: below it lie only entries of jobs that have left, which a long transaction elsewhere keeps there.
CREATE FUNCTION pick_1(name text, n integer, aged integer, floors bigint[], instant timestamptz, OUT rows tid[], OUT newest bigint)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off SET enable_sort = off AS $$
DECLARE
    heads bigint[]; -- of each priority, the place from which the rest begins
    older tid[];
    latest bigint;
BEGIN
    SELECT array_agg(f.ctid), max(f.lease) INTO rows, newest FROM (
        SELECT o.ctid, o.lease FROM generate_series(9, 0, -1) AS p (priority), LATERAL (
            SELECT ctid, lease FROM jobs
            WHERE status = 'PENDING' AND queue = name AND priority = p.priority
                AND place >= coalesce(floors[p.priority + 1], 0) AND (due_at IS NULL OR due_at > instant)
            ORDER BY place LIMIT n - aged FOR UPDATE SKIP LOCKED
        ) o LIMIT n - aged
    ) f;
    IF aged = 0 OR coalesce(cardinality(rows), 0) < n - aged THEN RETURN; END IF;
    heads := ARRAY (
        SELECT coalesce((SELECT max(place) + 1 FROM jobs WHERE ctid = ANY (rows) AND priority = p), floors[p + 1], 0)
        FROM generate_series(0, 9) AS p
    );
    SELECT array_agg(o.ctid), max(o.lease) INTO older, latest FROM (
        SELECT o.ctid, o.lease FROM generate_series(0, 9) AS p (priority), LATERAL (
            SELECT ctid, lease, place FROM jobs
            WHERE status = 'PENDING' AND queue = name AND priority = p.priority
                AND place >= heads[p.priority + 1] AND (due_at IS NULL OR due_at > instant)
            ORDER BY place LIMIT aged FOR UPDATE SKIP LOCKED
        ) o ORDER BY o.place LIMIT aged
    ) o;
    rows := rows || older;
    newest := greatest(newest, latest);
END $$;

-- Lease up to wants[i] jobs of queues[i], which are in order. Not in the order of the jobs.
-- The number of a lease is the time in microseconds, or more if a job had that: so one which a crash of the server took back
-- (leases are not waited for on the disk, but for those that the clock is behind) is not given out again. A lane is locked if there
-- is anything to count.
CREATE FUNCTION lease_1(queues text[], wants integer[], owner text, lease_s float8, at timestamptz)
RETURNS SETOF jobs LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    lane lanes;
    rules json;
    known bigint[];
    kinds integer; -- of priorities that wait
    may record;
    picked record;
    number bigint := 0;
    instant timestamptz;
    taken integer;
BEGIN
    FOR i IN 1 .. cardinality(queues) LOOP
        SELECT r.body, l.floors INTO rules, known FROM (VALUES (queues[i])) AS q (name)
        LEFT JOIN records r ON r.kind = 'queue' AND r.name = q.name LEFT JOIN lanes l ON l.queue = q.name;
        CONTINUE WHEN (rules ->> 'paused')::boolean;
        SELECT count(*) INTO kinds FROM generate_series(0, 9) AS p WHERE ( -- not EXISTS, which would become a join
            SELECT place FROM jobs
            WHERE status = 'PENDING' AND queue = queues[i] AND priority = p AND place >= coalesce(known[p + 1], 0)
            ORDER BY place LIMIT 1
        ) IS NOT NULL;
        CONTINUE WHEN kinds = 0;
        lane := NULL;
        IF kinds > 1 OR rules IS NOT NULL THEN
            lane := lane_1(queues[i]);
        END IF;
        instant := coalesce(at, clock_timestamp()); -- after the wait for the lane
        SELECT * INTO may FROM allowed_1(rules, lane, wants[i], instant);
        taken := 0;
        IF may.starts > 0 THEN
            SELECT * INTO picked FROM pick_1(queues[i], may.starts,
                CASE WHEN kinds > 1 THEN ((lane.leased + may.starts) / 16 - lane.leased / 16)::integer ELSE 0 END, known, instant);
            taken := coalesce(cardinality(picked.rows), 0);
        END IF;
        IF taken > 0 THEN
            IF number = 0 THEN number := extract(epoch FROM clock_timestamp()) * 1000000; END IF;
            IF number <= picked.newest THEN -- after a crash the clock may be behind it still, so this number must be kept
                PERFORM set_config('synchronous_commit', reset_val, true) FROM pg_settings WHERE name = 'synchronous_commit';
                number := picked.newest + 1;
            END IF;
            RETURN QUERY UPDATE jobs SET status = 'RUNNING', lease = number, worker_id = owner, started_at = instant,
                updated_at = instant, due_at = instant + lease_s * interval '1 s', reason = NULL
                WHERE ctid = ANY (picked.rows) RETURNING jobs.*;
            INSERT INTO tallies (queue, status, n) VALUES (queues[i], 'PENDING', -taken), (queues[i], 'RUNNING', taken);
        END IF;
        IF (taken > 0 AND kinds > 1)
            OR (may.bucket IS NOT NULL AND (taken > 0 OR lane.filled_at IS NULL OR lane.filled_at > instant))
            OR (may.bucket IS NULL AND lane.filled_at IS NOT NULL) -- without a limit no bucket is kept: one set later starts full
        THEN
            UPDATE lanes SET leased = leased + taken, tokens = may.bucket - taken,
                filled_at = CASE WHEN may.bucket IS NOT NULL THEN instant END
            WHERE queue = queues[i];
        END IF;
    END LOOP;
END $$;

-- Push the ends of leases out, and note progress. Answers those that are held. A job that somebody else is changing counts as held:
-- its task may be completing it in a transaction of its own, whose end is not waited for, and meanwhile nobody makes it lapse.
CREATE FUNCTION extend_1(ids text[], leases bigint[], progresses float8[], notes text[], lease_s float8, at timestamptz)
RETURNS TABLE (id text, lease bigint, cancel boolean) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    running text := 'RUNNING'; -- as a literal it would let the plan begin with all that run
    extended integer;
BEGIN
    RETURN QUERY WITH held AS (
        SELECT f.seq, b.progress, b.note FROM unnest(ids, leases, progresses, notes) AS b (id, lease, progress, note), LATERAL (
            SELECT seq FROM jobs WHERE jobs.id = b.id AND jobs.lease = b.lease AND status = running
            FOR NO KEY UPDATE SKIP LOCKED
        ) f
    )
    UPDATE jobs j SET due_at = instant + lease_s * interval '1 s',
        progress = coalesce(h.progress, j.progress), progress_note = coalesce(h.note, j.progress_note),
        updated_at = CASE WHEN h.progress IS NULL AND h.note IS NULL THEN j.updated_at ELSE instant END
    FROM held h WHERE j.seq = h.seq
    RETURNING j.id, j.lease, j.cancel_requested;
    GET DIAGNOSTICS extended = ROW_COUNT;
    IF extended < cardinality(ids) THEN
        RETURN QUERY SELECT f.* FROM unnest(ids, leases) AS b (id, lease), LATERAL (
            SELECT j.id, j.lease, j.cancel_requested FROM jobs j WHERE j.id = b.id AND j.lease = b.lease AND status = running OFFSET 0
        ) f;
    END IF;
END $$;
