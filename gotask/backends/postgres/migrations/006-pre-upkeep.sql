-- What a tick does: what is due, what is forgotten, sums, and the tables of the days.

-- Seconds until a lease lapses, if asked for, and until anything else is due; whether the tables of today are still to be made, and
-- how many tallies there are, up to `most`. To find the first lapse is dear while a long transaction elsewhere is open: before it lie
-- the entries of all leases since.
CREATE FUNCTION next_due_1(
    most integer, lapses boolean, at timestamptz, OUT lapse float8, OUT rest float8, OUT untended boolean, OUT tallied bigint
) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
BEGIN
    IF lapses THEN
        lapse := extract(epoch FROM (SELECT due_at FROM jobs WHERE status = 'RUNNING' ORDER BY due_at LIMIT 1) - instant);
    END IF;
    rest := extract(epoch FROM least(
        (SELECT due_at FROM jobs WHERE status <> 'RUNNING' AND due_at IS NOT NULL ORDER BY due_at LIMIT 1),
        (SELECT due_at FROM tallies WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1),
        (SELECT due_at FROM counts WHERE due_at < 'infinity' ORDER BY due_at LIMIT 1)
    ) - instant);
    untended := (SELECT day < (instant AT TIME ZONE 'UTC')::date FROM tended);
    tallied := (SELECT count(*) FROM (SELECT FROM tallies LIMIT most) t);
END $$;

-- What is due, up to `most` jobs, locked, the longest due first; leases too if `lapses`.
CREATE FUNCTION due_1(most integer, lapses boolean, at timestamptz) RETURNS SETOF jobs LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
BEGIN
    RETURN QUERY SELECT * FROM (
        SELECT * FROM (
            SELECT * FROM jobs WHERE lapses AND status = 'RUNNING' AND due_at <= instant
            ORDER BY due_at LIMIT most FOR UPDATE SKIP LOCKED
        ) lapsed
        UNION ALL
        SELECT * FROM (
            SELECT * FROM jobs WHERE status <> 'RUNNING' AND due_at IS NOT NULL AND due_at <= instant
            ORDER BY due_at, seq LIMIT most FOR UPDATE SKIP LOCKED
        ) waking
    ) due ORDER BY due_at, seq LIMIT most;
END $$;

-- Forget finished jobs whose time has come, the longest due first and about `most` of them; how many. Their rows are seen no
-- more, and go with the table of their day.
CREATE FUNCTION forget_1(most bigint, at timestamptz) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    instant timestamptz := coalesce(at, clock_timestamp());
    upto timestamptz; -- what is due by then is about `most`
    forgotten bigint;
    counted bigint;
BEGIN
    IF most <= 0 THEN RETURN 0; END IF;
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
    RETURN greatest(forgotten + counted, 0); -- less than nothing if one was deleted whose own minute is not over
END $$;

-- Add up what was tallied. Of jobs that are to be forgotten in more than an hour, the minute is kept, so that a day of them
-- is no more rows than it has minutes; until the end of that minute they still count.
CREATE FUNCTION fold_1(at timestamptz) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
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
    DELETE FROM calls WHERE called_at < now() - interval '1 minute'; -- there is nobody who listens
    RETURN folded;
END $$;

-- Once a day: make the tables of the days until which jobs that end now are remembered (`keeps`, in days), drop those of days
-- that are over; NULL if some could not be dropped. Runs with the rights of whoever migrated, so that nodes need none on the schema
-- itself. What it locks, all others would queue behind, so it hardly waits for a lock; somewhat longer if that was in vain for a day.
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
    late boolean;
    here oid := (SELECT relnamespace FROM pg_class WHERE oid = 'history'::regclass); -- and not among temporary tables
BEGIN
    IF cardinality(keeps) > 100 OR 4000 < ANY (keeps) OR 0 > ANY (keeps) THEN
        RAISE 'up to 100 numbers of days from 0 to 4000' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- not the row of `tended`: whoever forgets waits for that, and may hold what is waited for here
    IF NOT pg_try_advisory_xact_lock(hashtext('gotask days'), hashtext(here::text)) THEN RETURN 0; END IF;
    SELECT least(today - 1, (forgotten_until AT TIME ZONE 'UTC')::date - 1), tended.day < today - 1 INTO over, late
    FROM tended WHERE tended.day < today;
    IF NOT FOUND THEN RETURN 0; END IF;
    IF late THEN SET LOCAL lock_timeout = '400ms'; END IF; -- well below deadlock_timeout
    FOR day IN SELECT DISTINCT today + d FROM unnest(keeps || 0) k, generate_series(k, k + 1) d ORDER BY 1 LOOP
        name := 'history_' || to_char(day, 'YYYYMMDD');
        from_ := to_char(day, 'YYYY-MM-DD') || ' 00:00+00';
        upto := to_char(day + 1, 'YYYY-MM-DD') || ' 00:00+00';
        CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = name AND relnamespace = here);
        EXECUTE format('CREATE TABLE %I (LIKE history INCLUDING DEFAULTS INCLUDING INDEXES)', name);
        EXECUTE format('WITH rest AS (DELETE FROM history_rest WHERE due_at >= %L AND due_at < %L RETURNING *)'
            ' INSERT INTO %I SELECT * FROM rest', from_, upto, name);
        EXECUTE format('ALTER TABLE history ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, from_, upto);
        changed := changed + 1;
    END LOOP;
    FOR old IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'history'::regclass AND c.relname ~ '^history_[0-9]{8}$'
            AND to_date(right(c.relname, 8), 'YYYYMMDD') < over -- a day more, for whoever still reads
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE %I', old.relname);
            changed := changed + 1;
        EXCEPTION WHEN lock_not_available THEN -- whoever has read or written in `history` is in the way, but not of what was made
            RETURN NULL;
        END;
    END LOOP;
    DELETE FROM history_rest WHERE due_at < over::timestamp AT TIME ZONE 'UTC';
    UPDATE tended SET day = today WHERE tended.day < today;
    RETURN changed;
END $$;
