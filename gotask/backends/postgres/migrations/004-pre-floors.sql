-- Where leases begin to look for what waits.

-- Who may hold places that nobody else sees yet: a place is taken only under such a lock on a table of jobs.
CREATE FUNCTION writers_1() RETURNS text[] LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
    WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND relation IN ('jobs'::regclass, 'history'::regclass) AND mode IN ('RowShareLock', 'RowExclusiveLock')
$$;

-- Raise the floors of `queues`, which are in order, if it is some time since. All places up to `upto` were given
-- out before the last survey, to `writers` or to those who had ended; once none of these is left, whatever waits there is seen.
CREATE FUNCTION survey_1(every_s float8, queues text[]) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    last surveys;
    lane lanes;
    raised bigint[];
BEGIN
    SELECT * INTO last FROM surveys WHERE surveyed_at < clock_timestamp() - every_s * interval '1 s' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RETURN; END IF;
    INSERT INTO lanes (queue) SELECT * FROM unnest(queues) ON CONFLICT DO NOTHING;
    -- a prepared transaction that a restart has found again (-1/...) had another name before
    IF NOT EXISTS (SELECT FROM unnest(writers_1()) w WHERE w = ANY (last.writers) OR w LIKE '-1/%') THEN
        FOR lane IN SELECT * FROM lanes WHERE queue = ANY (queues) ORDER BY queue FOR UPDATE LOOP -- whoever gives a job back locks its lane too
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
