-- The queue: its tasks in the order of the file that they came from, each as it was written there,
-- with what Rolecall has changed of it beside. The functions of functions.sql are the only way to write.

DO $$ BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database has the encoding %, a queue needs UTF8',
            current_setting('server_encoding')
            USING HINT = 'createdb --encoding=UTF8 --template=template0';
    END IF;
END $$;

-- What the file holds beside its tasks: one row.
CREATE TABLE rolecall.queue (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    document text NOT NULL,                  -- JSON, its tasks left out
    wip_limits jsonb NOT NULL DEFAULT '{}',  -- role to number, the sane ones
    last_place bigint NOT NULL DEFAULT 0
);
INSERT INTO rolecall.queue (document) VALUES ('{"tasks": []}');

CREATE TABLE rolecall.task (
    place bigint PRIMARY KEY,             -- depth first, as the file has them
    id text UNIQUE,                       -- null: it has none that can be used; then ...
    problem text NOT NULL DEFAULT '',     -- ... why
    parent bigint,                        -- the task that it stands in
    document text NOT NULL,               -- JSON, its subtasks left out
    ours jsonb NOT NULL DEFAULT '{}',     -- the keys that we have written since, over the document's
    status text NOT NULL,
    start text NOT NULL,                  -- where its type starts
    priority double precision,
    stuck boolean NOT NULL,               -- nothing unblocks it by itself
    waiting integer NOT NULL DEFAULT 0,   -- dependencies that are not satisfied
    free boolean NOT NULL GENERATED ALWAYS AS (waiting = 0 AND id IS NOT NULL) STORED,
    open_children integer NOT NULL DEFAULT 0,  -- its children that have not ended
    good_children integer NOT NULL DEFAULT 0,  -- its children that are satisfied
    free_at timestamptz,                  -- not claimable before
    attempts bigint NOT NULL DEFAULT 0,
    token bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,    -- of all but the lease's heartbeat
    settled text[],                       -- the last settling writes, the last one first
    -- The lease; all null where nobody has one.
    owner text,
    role text,
    host text,
    started_at text,                      -- as the task has it; with the token it names an attempt
    ttl double precision,                 -- seconds
    heartbeat_at timestamptz,             -- by this server's clock
    lease jsonb,                          -- the holder's process
    wish text,
    wished_by text
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- A task is in the one or in the other of these. The first one's second column keeps apart what can
-- never be claimed as it stands, so that a claim meets no such task on its way.
CREATE INDEX task_unleased ON rolecall.task (status, free, priority, place)
    WHERE owner IS NULL;
CREATE INDEX task_leased ON rolecall.task (status) WHERE owner IS NOT NULL;
CREATE INDEX task_free_at ON rolecall.task (status, free_at) WHERE free_at IS NOT NULL;
CREATE INDEX task_blocked ON rolecall.task (place)
    WHERE status = 'blocked' AND free AND NOT stuck;
CREATE INDEX task_planned ON rolecall.task (place)
    WHERE status = 'planning_complete' AND open_children = 0 AND good_children > 0
        AND id IS NOT NULL;
CREATE INDEX task_problem ON rolecall.task (place) WHERE id IS NULL;
CREATE INDEX task_parent ON rolecall.task (parent) WHERE parent IS NOT NULL;

-- Which task waits for which id, known or not.
CREATE TABLE rolecall.needs (
    id text NOT NULL,
    place bigint NOT NULL REFERENCES rolecall.task ON DELETE CASCADE,
    PRIMARY KEY (id, place)
);
CREATE INDEX needs_place ON rolecall.needs (place);

-- Which task is a child of which id: it names it, or stands in it.
CREATE TABLE rolecall.family (
    parent text NOT NULL,
    place bigint NOT NULL REFERENCES rolecall.task ON DELETE CASCADE,
    PRIMARY KEY (parent, place)
);
CREATE INDEX family_place ON rolecall.family (place);

-- Until when those who spend from one credential wait, by its name.
CREATE TABLE rolecall.note (name text PRIMARY KEY, value jsonb NOT NULL);
