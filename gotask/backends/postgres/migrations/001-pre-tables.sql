-- The tables of the PostgreSQL storage. They live in one schema, which the search path names while this file runs.
--
-- A job is one row with one number, `seq`, for life. The unfinished are in `jobs`, which stays as small as the backlog; what
-- has ended moves to `history`, cut by the day on which it is to be forgotten, so that a day is forgotten by dropping a table.
-- Free text (unique_key, worker_id, reason, error, progress_note) has \ and NUL as \\ and \0, since PostgreSQL keeps no NUL in
-- a text.

CREATE SEQUENCE places;  -- numbers jobs as they were accepted, or queued up anew

CREATE TABLE jobs (
    seq              bigint PRIMARY KEY,
    place            bigint NOT NULL,            -- in the order of its queue; seq at first
    lease            bigint NOT NULL DEFAULT 0,  -- the fence
    due_at           timestamptz,                -- its meaning belongs to the status: see docs/states.md
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    expires_at       timestamptz,
    started_at       timestamptz,
    completed_at     timestamptz,
    progress         float8 NOT NULL DEFAULT 0,
    retry_count      integer NOT NULL DEFAULT 0,
    crashes          integer NOT NULL DEFAULT 0,
    priority         smallint NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    status           text COLLATE "C" NOT NULL,
    id               text COLLATE "C" NOT NULL,
    queue            text COLLATE "C" NOT NULL,
    type             text COLLATE "C" NOT NULL,
    unique_key       text COLLATE "C",
    worker_id        text COLLATE "C",
    origin_queue     text COLLATE "C",
    reason           text,
    error            text,
    progress_note    text,
    attempts         text,                       -- JSON: those that ended otherwise than in the current one
    more             text,                       -- JSON: what else was said of the job, which the store never looks into
    payload          bytea NOT NULL,             -- JSON, as it came
    result           bytea                       -- JSON, as it came
) WITH (
    fillfactor = 90,                             -- room for the progress of running jobs: it touches no index
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000, autovacuum_vacuum_cost_delay = 0
);
CREATE UNIQUE INDEX jobs_id ON jobs (id);
CREATE UNIQUE INDEX jobs_keys ON jobs (unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX jobs_ready ON jobs (queue, priority DESC, place) WHERE status = 'PENDING';
CREATE INDEX jobs_lapses ON jobs (due_at, queue) WHERE status = 'RUNNING';
CREATE INDEX jobs_wakes ON jobs (due_at, seq) WHERE status <> 'RUNNING' AND due_at IS NOT NULL;

-- The same columns in the same order: rows move between the two whole.
CREATE TABLE history (LIKE jobs INCLUDING DEFAULTS) PARTITION BY RANGE (due_at);
CREATE INDEX history_id ON history (id);
CREATE INDEX history_list ON history (status, seq DESC);
-- What is remembered until a day that has no table of its own yet.
CREATE TABLE history_rest PARTITION OF history DEFAULT;

-- How many jobs each queue has in each status: `tallies` takes a row from every transaction that changes a number, so that
-- none waits for another; fold_1 adds them up in `counts`. Of finished jobs, due_at is when they are forgotten.
CREATE TABLE tallies (
    queue  text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    due_at timestamptz,
    n      bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX tallies_due ON tallies (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE counts (
    queue  text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    due_at timestamptz NOT NULL,                 -- 'infinity' for unfinished jobs
    n      bigint NOT NULL,
    PRIMARY KEY (queue, status, due_at)
) WITH (fillfactor = 50);
CREATE INDEX counts_due ON counts (due_at) WHERE due_at < 'infinity';

-- Per queue: where to look for what waits, jobs leased so far while several priorities did (for ageing), and the token bucket of
-- its rate limit. Whoever counts locks the row.
CREATE TABLE lanes (
    queue     text COLLATE "C" PRIMARY KEY,
    floors    bigint[],                          -- of each priority, a place below which no job waits
    leased    bigint NOT NULL DEFAULT 0,
    tokens    float8,
    filled_at timestamptz
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE records (
    kind    text COLLATE "C" NOT NULL,
    name    text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    body    json NOT NULL,
    PRIMARY KEY (kind, name)
) WITH (fillfactor = 50);

-- Jobs whose end somebody waits for, and until when that is believed. Worth nothing after a crash, so never written to the log.
CREATE UNLOGGED TABLE waits (
    id         text COLLATE "C" PRIMARY KEY,
    believed_until timestamptz NOT NULL
);

-- Queues to which a transaction of somebody's own has brought a job, whose commit told nobody. Whoever sees this first tells.
CREATE UNLOGGED TABLE calls (
    queue     text COLLATE "C" NOT NULL,
    called_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- One row: what survey_1 saw when it last looked around.
CREATE TABLE surveys (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    surveyed_at timestamptz NOT NULL DEFAULT '-infinity',
    upto        bigint NOT NULL DEFAULT 0,       -- the last place that was given out
    writers     text[] NOT NULL DEFAULT '{}'     -- transactions that may hold places up to it
) WITH (fillfactor = 20);
INSERT INTO surveys DEFAULT VALUES;

-- One row: the day for which tend_1 has made and dropped tables, and the time up to which history is forgotten: rows that are
-- due by then are only still there until the table of their day is dropped.
CREATE TABLE tended (
    one             boolean PRIMARY KEY DEFAULT true CHECK (one),
    day             date NOT NULL DEFAULT '-infinity',
    forgotten_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 20);
INSERT INTO tended DEFAULT VALUES;
