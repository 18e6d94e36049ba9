-- What changes jobs. A function's number is part of its name: a later one comes beside it, so that nodes of two versions can
-- share a store, and goes only in a `post` step. `at` is the time, NULL for the server's own clock.
--
-- What the tables hold changes from empty to millions and back within minutes, so plans must not follow their statistics: each
-- function is planned once, for the indexes that were made for it. Rows that arrays name are looked up one by one in a LATERAL
-- subquery, which no planner turns around: a join could begin with the whole table instead, while that looks small.

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

-- The lane of a queue, locked.
CREATE FUNCTION lane_1(name text) RETURNS lanes LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
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
SET enable_mergejoin = off AS $$
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
SET enable_mergejoin = off SET enable_sort = off AS $$
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
-- (leases are not waited for on the disk) is not given out again. A lane is locked if there is anything to count.
CREATE FUNCTION lease_1(queues text[], wants integer[], owner text, lease_s float8, at timestamptz)
RETURNS SETOF jobs LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
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
            number := greatest(number, picked.newest + 1);
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

-- Who may hold places that nobody else sees yet: a place is taken only under such a lock on a table of jobs.
CREATE FUNCTION writers_1() RETURNS text[] LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
    WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND relation IN ('jobs'::regclass, 'history'::regclass) AND mode IN ('RowShareLock', 'RowExclusiveLock')
$$;

-- Raise the floors of all lanes, and of `queues`, which are in order, if it is some time since. All places up to `upto` were given
-- out before the last survey, to `writers` or to those who had ended; once none of these is left, whatever waits there is seen.
CREATE FUNCTION survey_1(every_s float8, queues text[]) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    last surveys;
    lane lanes;
    raised bigint[];
BEGIN
    SELECT * INTO last FROM surveys WHERE surveyed_at < clock_timestamp() - every_s * interval '1 s' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RETURN; END IF;
    INSERT INTO lanes (queue) SELECT * FROM unnest(queues) ON CONFLICT DO NOTHING;
    IF NOT last.writers && writers_1() THEN
        FOR lane IN SELECT * FROM lanes ORDER BY queue FOR UPDATE LOOP -- whoever gives a job back locks its lane too
            raised := ARRAY (
                SELECT least(last.upto, (
                    SELECT place FROM jobs
                    WHERE status = 'PENDING' AND queue = lane.queue AND priority = p AND place >= coalesce(lane.floors[p + 1], 0)
                    ORDER BY place LIMIT 1
                )) FROM generate_series(0, 9) AS p
            );
            UPDATE lanes SET floors = raised WHERE queue = lane.queue AND floors IS DISTINCT FROM raised;
        END LOOP;
    END IF;
    last.upto := (SELECT last_value FROM places); -- before the writers are looked for: whoever comes later gets a later place
    UPDATE surveys SET surveyed_at = clock_timestamp(), upto = last.upto, writers = writers_1();
END $$;

-- Seconds until something is due, whether the tables of today are still to be made, and how many tallies there are, up to `most`.
CREATE FUNCTION next_due_1(most integer, at timestamptz, OUT rest float8, OUT untended boolean, OUT tallied bigint)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
BEGIN
    rest := extract(epoch FROM least(
        (SELECT due_at FROM jobs WHERE status = 'RUNNING' ORDER BY due_at LIMIT 1),
        (SELECT due_at FROM jobs WHERE status <> 'RUNNING' AND due_at IS NOT NULL ORDER BY due_at LIMIT 1),
        (SELECT due_at FROM tallies WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1),
        (SELECT due_at FROM counts WHERE due_at < 'infinity' ORDER BY due_at LIMIT 1)
    ) - instant);
    untended := (SELECT day < (instant AT TIME ZONE 'UTC')::date FROM tended);
    tallied := (SELECT count(*) FROM (SELECT FROM tallies LIMIT most) t);
END $$;

-- What is due, up to `most` jobs, locked, the longest due first.
CREATE FUNCTION due_1(most integer, at timestamptz) RETURNS SETOF jobs LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
BEGIN
    RETURN QUERY SELECT * FROM (
        SELECT * FROM (
            SELECT * FROM jobs WHERE status = 'RUNNING' AND due_at <= instant
            ORDER BY due_at LIMIT most FOR UPDATE SKIP LOCKED
        ) lapsed
        UNION ALL
        SELECT * FROM (
            SELECT * FROM jobs WHERE status <> 'RUNNING' AND due_at IS NOT NULL AND due_at <= instant
            ORDER BY due_at, seq LIMIT most FOR UPDATE SKIP LOCKED
        ) waking
    ) due ORDER BY due_at, seq LIMIT most;
END $$;

-- Push the ends of leases out, and note progress. Answers those that are held. A job that somebody else is changing counts as held:
-- its task may be completing it in a transaction of its own, whose end is not waited for, and meanwhile nobody makes it lapse.
CREATE FUNCTION extend_1(ids text[], leases bigint[], progresses float8[], notes text[], lease_s float8, at timestamptz)
RETURNS TABLE (id text, lease bigint, cancel boolean) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
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

-- End leases well: the plain endings, which are nearly all. Ids come in order, each once; `keeps` is how many seconds each is
-- remembered. Answers those that were held, and whether somebody may wait for a place of the queue.
CREATE FUNCTION ack_1(ids text[], leases bigint[], results bytea[], keeps float8[], at timestamptz)
RETURNS TABLE (id text, lease bigint, queue text, limited boolean) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    running text := 'RUNNING'; -- as a literal it would let the plan begin with all that run
BEGIN
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
    SELECT e.id, e.lease, e.queue, e.queue = ANY (l.names) FROM ended e, (
        SELECT array_agg(r.name) AS names FROM (SELECT DISTINCT queue FROM ended) d
        JOIN records r ON r.kind = 'queue' AND r.name = d.queue AND (r.body ->> 'max_workers')::integer > 0
    ) l;
END $$;

-- Write what Python has decided of jobs that it has locked, each an object of the columns that change and its seq.
CREATE FUNCTION write_1(staying json, ending json, queues text[], statuses text[], dues timestamptz[], ns bigint[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
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
SET enable_mergejoin = off AS $$
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
-- that are over. Runs with the rights of whoever migrated, so that nodes need none on the schema itself. What it locks, all others
-- would queue behind, so it hardly waits for a lock.
CREATE FUNCTION tend_1(keeps integer[], at timestamptz) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '100ms' AS $$
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
