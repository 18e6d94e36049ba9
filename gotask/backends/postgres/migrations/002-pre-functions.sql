-- What changes jobs. A function's number is part of its name: a later one comes beside it, so that nodes of two versions can
-- share a store, and goes only in a `post` step. `at` is the time, NULL for the server's own clock.
--
-- What the tables hold changes from empty to millions and back within minutes, so plans must not follow their statistics: each
-- function is planned once, for the indexes that were made for it.

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
SET enable_mergejoin = off AS $$
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

-- What a queue's record and its lane allow of `want` starts now. The lane is locked, and its bucket filled.
CREATE FUNCTION allowed_1(lane lanes, want integer, instant timestamptz, OUT starts integer, OUT bucket float8)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    rules json;
    most integer;
    rate float8;
BEGIN
    starts := want;
    SELECT body INTO rules FROM records WHERE kind = 'queue' AND name = lane.queue;
    IF NOT FOUND THEN RETURN; END IF;
    IF (rules ->> 'paused')::boolean THEN
        starts := 0;
        RETURN;
    END IF;
    most := coalesce((rules ->> 'max_workers')::integer, 0);
    IF most > 0 THEN
        starts := least(starts, most - (SELECT count(*) FROM jobs WHERE status = 'RUNNING' AND queue = lane.queue));
    END IF;
    rate := coalesce((rules ->> 'rate_limit')::float8, 0);
    IF rate > 0 THEN -- it holds a second's worth, and at least one start; a clock that stepped back goes on from there
        bucket := coalesce(lane.tokens, greatest(1, rate));
        IF lane.filled_at <= instant THEN
            bucket := least(greatest(1, rate), bucket + extract(epoch FROM instant - lane.filled_at) * rate);
        END IF;
        starts := least(starts, floor(bucket + 1e-9));
    END IF;
    starts := greatest(starts, 0);
END $$;

-- The next `n` of a queue in order, locked; those whose turn of ageing falls among them go to the oldest of the rest.
CREATE FUNCTION pick_1(lane lanes, n integer, instant timestamptz, OUT rows tid[], OUT newest bigint)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_sort = off AS $$
DECLARE
    aged integer := (lane.leased + n) / 16 - lane.leased / 16;
    lowest smallint;
    highest smallint;
    heads json; -- priority -> the highest place picked
    older tid[];
BEGIN
    IF aged > 0 THEN
        SELECT priority INTO lowest FROM jobs WHERE status = 'PENDING' AND queue = lane.queue ORDER BY priority LIMIT 1;
        SELECT priority INTO highest FROM jobs WHERE status = 'PENDING' AND queue = lane.queue
        ORDER BY priority DESC LIMIT 1;
        IF lowest = highest THEN aged := 0; END IF; -- the first are the oldest
    END IF;
    IF aged = 0 THEN
        SELECT array_agg(f.ctid), max(f.lease) INTO rows, newest FROM (
            SELECT ctid, lease FROM jobs
            WHERE status = 'PENDING' AND queue = lane.queue AND (due_at IS NULL OR due_at > instant)
            ORDER BY priority DESC, place LIMIT n FOR UPDATE SKIP LOCKED
        ) f;
        RETURN;
    END IF;
    SELECT array_agg(f.ctid), max(f.lease) INTO rows, newest FROM (
        SELECT ctid, lease FROM jobs
        WHERE status = 'PENDING' AND queue = lane.queue AND (due_at IS NULL OR due_at > instant)
        ORDER BY priority DESC, place LIMIT n - aged FOR UPDATE SKIP LOCKED
    ) f;
    IF coalesce(cardinality(rows), 0) < n - aged THEN RETURN; END IF;
    SELECT json_object_agg(h.priority, h.place) INTO heads
    FROM (SELECT priority, max(place) AS place FROM jobs WHERE ctid = ANY (rows) GROUP BY priority) h;
    SELECT array_agg(o.ctid), greatest(newest, max(o.lease)) INTO older, newest FROM (
        SELECT o.ctid, o.lease FROM generate_series(lowest::integer, highest::integer) AS p (priority), LATERAL (
            SELECT ctid, lease, place FROM jobs
            WHERE status = 'PENDING' AND queue = lane.queue AND priority = p.priority
                AND (due_at IS NULL OR due_at > instant) AND place > coalesce((heads ->> p.priority::text)::bigint, -1)
            ORDER BY place LIMIT aged FOR UPDATE SKIP LOCKED
        ) o ORDER BY o.place LIMIT aged
    ) o;
    rows := rows || older;
END $$;

-- Lease up to wants[i] jobs of queues[i], which are in order. Not in the order of the jobs.
-- The number of a lease is never below the time in microseconds, so that one which a crash of the server took back (leases are
-- not waited for on the disk) is not given out again.
CREATE FUNCTION lease_1(queues text[], wants integer[], owner text, lease_s float8, at timestamptz)
RETURNS SETOF jobs LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    lane lanes;
    may record;
    picked record;
    number bigint;
    least_ bigint;
    instant timestamptz;
    taken integer;
BEGIN
    FOR i IN 1 .. cardinality(queues) LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM jobs WHERE status = 'PENDING' AND queue = queues[i]);
        SELECT * INTO lane FROM lanes WHERE queue = queues[i] FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO lanes (queue) VALUES (queues[i]) ON CONFLICT DO NOTHING;
            SELECT * INTO lane FROM lanes WHERE queue = queues[i] FOR UPDATE;
        END IF;
        instant := coalesce(at, clock_timestamp()); -- after the wait for the lane
        SELECT * INTO may FROM allowed_1(lane, wants[i], instant);
        taken := 0;
        IF may.starts > 0 THEN
            SELECT * INTO picked FROM pick_1(lane, may.starts, instant);
            taken := coalesce(cardinality(picked.rows), 0);
        END IF;
        IF taken > 0 THEN
            IF number IS NULL THEN
                number := nextval('leases');
                least_ := greatest(extract(epoch FROM clock_timestamp()) * 1000000, picked.newest + 1);
                IF number < least_ THEN
                    number := least_;
                    PERFORM setval('leases', number);
                END IF;
            ELSIF number <= picked.newest THEN
                number := picked.newest + 1;
            END IF;
            RETURN QUERY UPDATE jobs SET status = 'RUNNING', lease = number, worker_id = owner, started_at = instant,
                updated_at = instant, due_at = instant + lease_s * interval '1 s', reason = NULL
                WHERE ctid = ANY (picked.rows) RETURNING jobs.*;
            INSERT INTO tallies (queue, status, n) VALUES (queues[i], 'PENDING', -taken), (queues[i], 'RUNNING', taken);
        END IF;
        IF taken > 0 OR (may.bucket IS NOT NULL AND (lane.filled_at IS NULL OR lane.filled_at > instant)) THEN
            UPDATE lanes SET leased = leased + taken, tokens = may.bucket - taken,
                filled_at = CASE WHEN may.bucket IS NOT NULL THEN instant END
            WHERE queue = queues[i]; -- without a limit no bucket is kept: one set later starts full
        END IF;
    END LOOP;
END $$;

-- Push the ends of leases out, and note progress. Answers those that are held.
CREATE FUNCTION extend_1(ids text[], leases bigint[], progresses float8[], notes text[], lease_s float8, at timestamptz)
RETURNS TABLE (id text, lease bigint, cancel boolean) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
BEGIN
    RETURN QUERY UPDATE jobs j SET due_at = instant + lease_s * interval '1 s',
        progress = coalesce(b.progress, j.progress), progress_note = coalesce(b.note, j.progress_note),
        updated_at = CASE WHEN b.progress IS NULL AND b.note IS NULL THEN j.updated_at ELSE instant END
    FROM unnest(ids, leases, progresses, notes) AS b (id, lease, progress, note)
    WHERE j.id = b.id AND j.lease = b.lease AND j.status = 'RUNNING'
    RETURNING j.id, j.lease, j.cancel_requested;
END $$;

-- End leases well: the plain endings, which are nearly all. Ids come in order, each once; `keeps` is how many seconds each is
-- remembered. Answers those that were held, and whether somebody may wait for a place of the queue.
CREATE FUNCTION ack_1(ids text[], leases bigint[], results bytea[], keeps float8[], at timestamptz)
RETURNS TABLE (id text, lease bigint, queue text, limited boolean) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
BEGIN
    RETURN QUERY WITH gone AS (
        DELETE FROM jobs j USING unnest(ids, leases, results, keeps) AS a (id, lease, outcome, keep)
        WHERE j.id = a.id AND j.lease = a.lease AND j.status = 'RUNNING'
        RETURNING j.*, a.outcome, a.keep
    ), ended AS (
        INSERT INTO history (seq, place, lease, due_at, created_at, updated_at, expires_at, started_at, completed_at, progress,
            retry_count, crashes, priority, cancel_requested, status, id, queue, type, unique_key, worker_id, origin_queue,
            progress_note, attempts, more, payload, result)
        SELECT seq, place, lease, instant + keep * interval '1 s', created_at, instant, expires_at, started_at, instant, progress,
            retry_count, crashes, priority, cancel_requested, 'SUCCESS', id, queue, type, unique_key, worker_id, origin_queue,
            progress_note, attempts, more, payload, outcome
        FROM gone
        RETURNING id, lease, queue, due_at
    ), tallied AS (
        INSERT INTO tallies (queue, status, due_at, n)
        SELECT queue, 'RUNNING', NULL, -count(*) FROM ended GROUP BY queue
        UNION ALL
        SELECT queue, 'SUCCESS', due_at, count(*) FROM ended GROUP BY queue, due_at
    )
    SELECT e.id, e.lease, e.queue, r.name IS NOT NULL FROM ended e
    LEFT JOIN records r ON r.kind = 'queue' AND r.name = e.queue AND (r.body ->> 'max_workers')::integer > 0;
END $$;

-- Write what Python has decided of jobs that it has locked, each an object of the columns that change and its seq.
CREATE FUNCTION write_1(staying json, ending json, queues text[], statuses text[], dues timestamptz[], ns bigint[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
BEGIN
    IF staying IS NOT NULL THEN
        UPDATE jobs j SET (place, due_at, updated_at, started_at, completed_at, expires_at, progress, retry_count, crashes,
            cancel_requested, status, queue, worker_id, origin_queue, reason, error, progress_note, attempts, result)
            = (c.place, c.due_at, c.updated_at, c.started_at, c.completed_at, c.expires_at, c.progress, c.retry_count, c.crashes,
            c.cancel_requested, c.status, c.queue, c.worker_id, c.origin_queue, c.reason, c.error, c.progress_note, c.attempts,
            c.result)
        FROM json_populate_recordset(NULL::jobs, staying) c WHERE j.seq = c.seq;
    END IF;
    IF ending IS NOT NULL THEN
        WITH gone AS (
            DELETE FROM jobs j USING (SELECT value, (value ->> 'seq')::bigint AS seq FROM json_array_elements(ending)) c
            WHERE j.seq = c.seq RETURNING j AS job, c.value
        )
        INSERT INTO history SELECT r.* FROM gone, LATERAL json_populate_record(gone.job, gone.value) r;
    END IF;
    INSERT INTO tallies (queue, status, due_at, n) SELECT * FROM unnest(queues, statuses, dues, ns);
END $$;

-- Bring jobs back from `history` that Python has locked there; answers those that could: not if another holds an id or a key.
CREATE FUNCTION revive_1(coming json) RETURNS TABLE (seq bigint) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH new AS (
        INSERT INTO jobs SELECT r.* FROM json_array_elements(coming) WITH ORDINALITY AS c (value, at)
            JOIN history h ON h.seq = (c.value ->> 'seq')::bigint, LATERAL json_populate_record(h, c.value) r
            ORDER BY c.at
        ON CONFLICT DO NOTHING RETURNING seq
    ), gone AS (
        DELETE FROM history h USING new WHERE h.seq = new.seq
    )
    SELECT seq FROM new;
END $$;

-- Forget finished jobs whose time has come, the longest due first and about `most` of them; how many. Their rows are seen no
-- more, and go with the table of their day.
CREATE FUNCTION forget_1(most bigint, at timestamptz) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    upto timestamptz; -- what is due by then is about `most`
    forgotten bigint;
    counted bigint;
BEGIN
    PERFORM FROM tended FOR UPDATE;
    SELECT min(due_at) INTO upto FROM (
        SELECT due_at, sum(n) OVER (ORDER BY due_at) AS jobs FROM (
            (SELECT due_at, n FROM tallies WHERE due_at <= instant ORDER BY due_at LIMIT most)
            UNION ALL (SELECT due_at, n FROM counts WHERE due_at <= instant ORDER BY due_at LIMIT most)
        ) due
    ) added WHERE jobs >= most;
    upto := coalesce(upto, instant);
    WITH gone AS (DELETE FROM tallies WHERE due_at <= upto RETURNING n)
    SELECT coalesce(sum(n), 0) INTO forgotten FROM gone;
    WITH gone AS (DELETE FROM counts WHERE due_at <= upto RETURNING n)
    SELECT coalesce(sum(n), 0) INTO counted FROM gone;
    UPDATE tended SET forgotten_until = greatest(forgotten_until, upto);
    RETURN forgotten + counted;
END $$;

-- Add up what was tallied. Of jobs that are to be forgotten in more than an hour, the minute is kept, so that a day of them
-- is no more rows than it has minutes; until the end of that minute they still count.
CREATE FUNCTION fold_1(at timestamptz) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    folded bigint;
BEGIN
    WITH gone AS (
        DELETE FROM tallies WHERE ctid = ANY (ARRAY (SELECT ctid FROM tallies LIMIT 10000 FOR UPDATE SKIP LOCKED))
        RETURNING queue, status, n, CASE
            WHEN due_at IS NULL THEN 'infinity'
            WHEN due_at > instant + interval '1 hour' THEN date_trunc('minute', due_at) + interval '1 minute'
            ELSE due_at END AS due_at
    ), summed AS (
        INSERT INTO counts AS c (queue, status, due_at, n)
        SELECT queue, status, due_at, sum(n) FROM gone GROUP BY queue, status, due_at HAVING sum(n) <> 0
        ORDER BY queue, status, due_at
        ON CONFLICT (queue, status, due_at) DO UPDATE SET n = c.n + excluded.n
    )
    SELECT count(*) INTO folded FROM gone;
    DELETE FROM waits WHERE believed_until < instant;
    RETURN folded;
END $$;

-- Once a day: make the tables of the days until which jobs that end now are remembered (`keeps`, in days), drop those of days
-- that are over. Runs with the rights of whoever migrated, so that nodes need none on the schema itself.
CREATE FUNCTION tend_1(keeps integer[], at timestamptz) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
DECLARE
    today date := (coalesce(at, clock_timestamp()) AT TIME ZONE 'UTC')::date;
    day date;
    name text;
    from_ text;
    upto text;
    old record;
    over date;
    changed integer := 0;
BEGIN
    SELECT least(today - 1, (forgotten_until AT TIME ZONE 'UTC')::date - 1) INTO over
    FROM tended WHERE tended.day < today FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RETURN 0; END IF;
    FOR day IN SELECT DISTINCT today + d FROM unnest(keeps || 0) k, generate_series(k, k + 1) d ORDER BY 1 LOOP
        name := 'history_' || to_char(day, 'YYYYMMDD');
        from_ := to_char(day, 'YYYY-MM-DD') || ' 00:00+00';
        upto := to_char(day + 1, 'YYYY-MM-DD') || ' 00:00+00';
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE history INCLUDING DEFAULTS INCLUDING INDEXES)', name);
        EXECUTE format('WITH rest AS (DELETE FROM history_rest WHERE due_at >= %L AND due_at < %L RETURNING *)'
            ' INSERT INTO %I SELECT * FROM rest', from_, upto, name);
        EXECUTE format('ALTER TABLE history ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, from_, upto);
        changed := changed + 1;
    END LOOP;
    FOR old IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'history'::regclass AND c.relname ~ '^history_\d{8}$'
            AND to_date(right(c.relname, 8), 'YYYYMMDD') < over -- a day more, for whoever still reads
    LOOP
        EXECUTE format('DROP TABLE %I', old.relname);
        changed := changed + 1;
    END LOOP;
    DELETE FROM history_rest WHERE due_at < over::timestamp AT TIME ZONE 'UTC';
    UPDATE tended SET day = today WHERE tended.day < today;
    RETURN changed;
END $$;
