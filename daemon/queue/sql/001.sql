-- The queue: its tasks in the order of the file that they came from, each as it was written there,
-- with what Rolecall has changed of it beside. The functions at the end are the only way to write.

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

-- A function in SQL that is not inlined is planned anew in each transaction; one in plpgsql once.

-- The one clock. Tests put one of their own in its place.
CREATE FUNCTION rolecall.now() RETURNS timestamptz
LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

CREATE FUNCTION rolecall.in_words(moment timestamptz) RETURNS text
LANGUAGE sql STABLE AS
$$ SELECT to_char(date_trunc('milliseconds', moment) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') $$;

CREATE FUNCTION rolecall.satisfied(status text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$ SELECT status IN ('done', 'completed') $$;

CREATE FUNCTION rolecall.ended(status text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$ SELECT status IN ('done', 'completed', 'cancelled') $$;

-- Remember, until this session's next wake(), whom to tell that tasks may be claimable.
CREATE FUNCTION rolecall.will_wake(status text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    known text := coalesce(current_setting('rolecall.wake', true), '');
BEGIN
    IF position(E'\n' || status || E'\n' IN E'\n' || known) = 0 THEN
        PERFORM set_config('rolecall.wake', known || status || E'\n', false);
    END IF;
END $$;

-- Tell them. Apart from the write: while a transaction that notifies commits, no other such can.
CREATE FUNCTION rolecall.wake() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN
        SELECT DISTINCT s FROM unnest(string_to_array(current_setting('rolecall.wake', true), E'\n')) s
        WHERE s <> ''
    LOOP
        PERFORM pg_notify(('rolecall.' || each)::name::text, '');  -- as LISTEN cuts it
    END LOOP;
    PERFORM set_config('rolecall.wake', '', false);
END $$;

-- What a task's status means to those who wait for it, and to its parents.
CREATE FUNCTION rolecall.follow() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    more integer := rolecall.satisfied(NEW.status)::int - rolecall.satisfied(OLD.status)::int;
    over integer := rolecall.ended(NEW.status)::int - rolecall.ended(OLD.status)::int;
    each record;
BEGIN
    IF more <> 0 AND NEW.id IS NOT NULL THEN
        FOR each IN
            SELECT t.place FROM rolecall.needs n JOIN rolecall.task t USING (place)
            WHERE n.id = NEW.id ORDER BY t.place FOR UPDATE OF t
        LOOP
            UPDATE rolecall.task SET waiting = waiting - more, version = version + 1
            WHERE place = each.place;
        END LOOP;
        PERFORM rolecall.will_wake(t.status) FROM rolecall.needs n JOIN rolecall.task t USING (place)
        WHERE n.id = NEW.id AND t.waiting = 0 GROUP BY t.status;
    END IF;
    IF more <> 0 OR over <> 0 THEN
        FOR each IN
            SELECT t.place FROM rolecall.family f JOIN rolecall.task t ON t.id = f.parent
            WHERE f.place = NEW.place AND t.place <> NEW.place ORDER BY t.place FOR UPDATE OF t
        LOOP
            UPDATE rolecall.task
            SET open_children = open_children - over, good_children = good_children + more
            WHERE place = each.place;
            -- A claim passes over what is locked just now.
            PERFORM rolecall.will_wake(t.status) FROM rolecall.task t
            WHERE t.place = each.place AND t.free AND t.owner IS NULL;
        END LOOP;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER follow AFTER UPDATE OF status ON rolecall.task FOR EACH ROW
WHEN ((OLD.status IN ('done', 'completed')) <> (NEW.status IN ('done', 'completed'))
    OR (OLD.status = 'cancelled') <> (NEW.status = 'cancelled'))
EXECUTE FUNCTION rolecall.follow();

-- A status that somebody writes who is no function of ours (they count the version): as if it had
-- been changed in a file. What holds the task holds it no more, and who may claim it is told.
CREATE FUNCTION rolecall.by_hand() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    NEW.ours := NEW.ours || jsonb_build_object('status', NEW.status)
        || CASE WHEN OLD.owner IS NULL THEN '{}'::jsonb ELSE '{"agent": null, "lease": null}' END;
    NEW.owner := NULL; NEW.role := NULL; NEW.host := NULL; NEW.started_at := NULL; NEW.ttl := NULL;
    NEW.heartbeat_at := NULL; NEW.lease := NULL; NEW.wish := NULL; NEW.wished_by := NULL;
    PERFORM pg_notify(('rolecall.' || each)::name::text, '') FROM unnest(ARRAY[OLD.status, NEW.status]) each;
    RETURN NEW;
END $$;

CREATE TRIGGER by_hand BEFORE UPDATE OF status ON rolecall.task FOR EACH ROW
WHEN (NEW.status <> OLD.status AND NEW.version = OLD.version)
EXECUTE FUNCTION rolecall.by_hand();

-- The moves that happen by themselves, to a fixed point; as a JSON list, in order. After so many at
-- once the rest is left to the next claim or settling: it comes, for those who may claim are told.
CREATE FUNCTION rolecall.move_on(unblock boolean, close_stories boolean) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    moves jsonb[] := '{}';
    more boolean;
    each record;
BEGIN
    more := EXISTS (
            SELECT FROM rolecall.task WHERE status = 'blocked' AND free AND NOT stuck AND unblock)
        OR EXISTS (
            SELECT FROM rolecall.task WHERE status = 'planning_complete' AND open_children = 0
                AND good_children > 0 AND id IS NOT NULL AND close_stories);
    WHILE more AND cardinality(moves) < 500 LOOP
        more := false;
        FOR each IN
            SELECT place, id, status, start AS target, 'its dependencies are satisfied' AS why
            FROM rolecall.task
            WHERE unblock AND status = 'blocked' AND free AND NOT stuck
            ORDER BY place LIMIT 500 FOR UPDATE SKIP LOCKED
        LOOP
            more := true;
            PERFORM rolecall.move(each.place, each.target);
            moves := moves || (to_jsonb(each) - 'place');
        END LOOP;
        FOR each IN
            SELECT place, id, status, 'done' AS target, 'its children have ended' AS why
            FROM rolecall.task
            WHERE close_stories AND status = 'planning_complete' AND open_children = 0
                AND good_children > 0 AND id IS NOT NULL
            ORDER BY place LIMIT 500 FOR UPDATE SKIP LOCKED
        LOOP
            more := true;
            PERFORM rolecall.move(each.place, each.target);
            moves := moves || (to_jsonb(each) - 'place');
        END LOOP;
    END LOOP;
    RETURN to_jsonb(moves);
END $$;

CREATE FUNCTION rolecall.move(at bigint, target text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM rolecall.will_wake(target);
    UPDATE rolecall.task SET status = target, version = version + 1,
        ours = ours || jsonb_build_object(
            'status', target, 'updated_at', rolecall.in_words(rolecall.now()))
    WHERE place = at;
END $$;

-- Whether so many tasks are in a held status, with a lease or without.
CREATE FUNCTION rolecall.is_full(held text, most integer) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN most <= (SELECT count(*) FROM (
            SELECT FROM rolecall.task WHERE status = held AND owner IS NOT NULL LIMIT most) leased)
        + (SELECT count(*) FROM (
            SELECT FROM rolecall.task WHERE status = held AND owner IS NULL LIMIT most) others);
END $$;

-- Win the role's next task. One at a time of those that hold in the same status: so that the WIP
-- limit is exact. It need not last before the attempt's take_over, which comes before its agent.
CREATE FUNCTION rolecall.claim(
    a_role text, a_claims text[], a_holds text, a_limit integer, a_slots integer,
    an_owner text, a_host text, a_ttl double precision, a_lease jsonb, but_not text[],
    ignore_wip boolean, unblock boolean, close_stories boolean,
    OUT place bigint, OUT document text, OUT ours jsonb, OUT token bigint, OUT version bigint,
    OUT attempt bigint, OUT started_at text, OUT source text, OUT moves jsonb, OUT moment double precision
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    clock timestamptz := rolecall.now();
    most integer;
BEGIN
    -- A SET of the function itself would end before the commit. take_over, which comes before the
    -- agent, waits for the disk, and so makes the claim last.
    PERFORM set_config('synchronous_commit', 'off', true);
    moment := extract(epoch FROM clock);
    moves := rolecall.move_on(unblock, close_stories);
    PERFORM pg_advisory_xact_lock(hashtextextended('rolecall ' || a_holds, 0));
    IF NOT ignore_wip THEN
        SELECT (q.wip_limits ->> a_role)::integer INTO most FROM rolecall.queue q;
        most := coalesce(most, a_limit);
        IF rolecall.is_full(a_holds, most) THEN
            RETURN;
        END IF;
    END IF;
    IF a_slots IS NOT NULL AND a_slots <= (SELECT count(*) FROM rolecall.task t
                   WHERE t.owner IS NOT NULL AND t.status = a_holds AND t.role = a_role
                       AND t.host = a_host
                       AND t.heartbeat_at + make_interval(secs => t.ttl) > clock) THEN
        RETURN;
    END IF;
    IF array_length(a_claims, 1) = 1 THEN
        SELECT t.place, t.status INTO place, source FROM rolecall.task t
        WHERE t.status = a_claims[1] AND t.free AND t.owner IS NULL
            AND (t.free_at IS NULL OR t.free_at <= clock) AND t.id <> ALL (but_not)
        ORDER BY t.status, t.free, t.priority, t.place LIMIT 1 FOR UPDATE SKIP LOCKED;
    ELSE
        SELECT first.place, first.status INTO place, source FROM unnest(a_claims) each,
            LATERAL (
                SELECT t.place, t.status, t.priority FROM rolecall.task t
                WHERE t.status = each AND t.free AND t.owner IS NULL
                    AND (t.free_at IS NULL OR t.free_at <= clock) AND t.id <> ALL (but_not)
                ORDER BY t.status, t.free, t.priority, t.place LIMIT 1 FOR UPDATE SKIP LOCKED
            ) first
        ORDER BY first.priority, first.place LIMIT 1;
    END IF;
    IF place IS NULL THEN
        RETURN;
    END IF;
    started_at := rolecall.in_words(clock);
    UPDATE rolecall.task t SET
        status = a_holds, token = t.token + 1, version = t.version + 1,
        owner = an_owner, role = a_role, host = a_host, started_at = claim.started_at,
        ttl = a_ttl, heartbeat_at = clock, lease = a_lease, wish = NULL, wished_by = NULL,
        ours = t.ours || jsonb_build_object(
            'status', a_holds, 'agent', a_role, 'token', t.token + 1, 'updated_at', claim.started_at,
            'lease', jsonb_build_object(
                'owner', an_owner, 'token', t.token + 1, 'started_at', claim.started_at)
                || CASE WHEN array_length(a_claims, 1) > 1
                    THEN jsonb_build_object('from', t.status) ELSE '{}' END)
    WHERE t.place = claim.place
    RETURNING t.document, t.ours, t.token, t.version, t.attempts + 1
    INTO document, ours, token, version, attempt;
END $$;

-- A claim's token is raised where the host has a run folder of that number already.
CREATE FUNCTION rolecall.raise_token(an_id text, a_token bigint, a_start text, to_token bigint)
RETURNS TABLE (document text, ours jsonb, version bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY UPDATE rolecall.task t SET token = to_token, version = t.version + 1,
        ours = jsonb_set(t.ours || jsonb_build_object('token', to_token), '{lease,token}', to_jsonb(to_token))
    WHERE t.id = an_id AND t.token = a_token AND t.started_at = a_start AND to_token > a_token
    RETURNING t.document, t.ours, t.version;
END $$;

-- Make the lease the attempt's own: the holder is the process that claimed, or this one already.
CREATE FUNCTION rolecall.take_over(
    an_id text, a_token bigint, a_start text, a_lease jsonb, from_pid bigint, from_started bigint
) RETURNS TABLE (
    document text, ours jsonb, version bigint, wish text, wished_by text, moment double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY UPDATE rolecall.task t SET lease = a_lease, heartbeat_at = rolecall.now()
    WHERE t.id = an_id AND t.token = a_token AND t.started_at = a_start AND t.owner IS NOT NULL
        AND ((t.lease ->> 'pid')::bigint, (t.lease ->> 'pid_started')::bigint) IN (
            (from_pid, from_started),
            ((a_lease ->> 'pid')::bigint, (a_lease ->> 'pid_started')::bigint))
    RETURNING t.document, t.ours, t.version, t.wish, t.wished_by,
        extract(epoch FROM t.heartbeat_at)::double precision;
END $$;

-- Prolong a lease by its time to live; ``seen``: what its holder has seen of its own tree.
CREATE FUNCTION rolecall.renew(an_id text, a_token bigint, a_start text, seen jsonb)
RETURNS TABLE (lease jsonb, wish text, wished_by text, moment double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY UPDATE rolecall.task t SET heartbeat_at = rolecall.now(),
        lease = t.lease || seen
    WHERE t.id = an_id AND t.token = a_token AND t.started_at = a_start AND t.owner IS NOT NULL
    RETURNING t.lease, t.wish, t.wished_by, extract(epoch FROM t.heartbeat_at)::double precision;
END $$;

-- Put new tasks behind all others, and return the place that they are behind. ``facts``: a list of
-- what the columns are to hold, with "parent" as a number in this list; ``documents``: beside it.
CREATE FUNCTION rolecall.put_behind(facts jsonb, documents text[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    base bigint;
BEGIN
    -- Whoever appends waits here for whoever else does: places, and what new tasks say of each other.
    UPDATE rolecall.queue SET last_place = last_place + jsonb_array_length(facts)
    RETURNING last_place - jsonb_array_length(facts) INTO base;
    INSERT INTO rolecall.task (place, id, problem, parent, document, status, start, priority,
        stuck, waiting, open_children, good_children, free_at, attempts, token)
    SELECT base + n, f.id, f.problem, base + f.parent, f.document, f.status, f.start, f.priority,
        f.stuck, f.waiting, f.open_children, f.good_children, to_timestamp(f.free_at), f.attempts,
        f.token
    FROM ROWS FROM (jsonb_to_recordset(facts) AS (
        id text, problem text, parent bigint, status text, start text, priority double precision,
        stuck boolean, waiting integer, open_children integer, good_children integer,
        free_at double precision, attempts bigint, token bigint
    ), unnest(documents)) WITH ORDINALITY AS f(id, problem, parent, status, start, priority, stuck,
        waiting, open_children, good_children, free_at, attempts, token, document, n);
    INSERT INTO rolecall.needs (id, place)
    SELECT needed, base + n
    FROM jsonb_array_elements(facts) WITH ORDINALITY AS listed(f, n),
        jsonb_array_elements_text(f -> 'needs') needed;
    INSERT INTO rolecall.family (parent, place)
    SELECT named, base + n
    FROM jsonb_array_elements(facts) WITH ORDINALITY AS listed(f, n),
        jsonb_array_elements_text(f -> 'parents') named;
    RETURN base;
END $$;

-- The same among tasks that are there already; each counts what it waits for, and its children.
CREATE FUNCTION rolecall.append(facts jsonb, documents text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    base bigint := rolecall.put_behind(facts, documents);
BEGIN
    -- Nobody may move those that are counted below before this is done.
    -- (A claim passes over what is locked just now: those who may claim are told afterwards.)
    PERFORM rolecall.will_wake(locked.status) FROM (
        SELECT t.status FROM rolecall.task t WHERE t.id IN (
            SELECT n.id FROM rolecall.needs n WHERE n.place > base) AND t.place <= base
        ORDER BY t.place FOR SHARE) locked;
    PERFORM rolecall.will_wake(locked.status) FROM (
        SELECT t.status FROM rolecall.task t JOIN rolecall.family f USING (place)
        WHERE f.parent IN (SELECT id FROM rolecall.task WHERE place > base) AND t.place <= base
        ORDER BY t.place FOR SHARE OF t) locked;
    -- The new ones wait for what is not satisfied, or not there.
    UPDATE rolecall.task t SET waiting = t.waiting + counted.many
    FROM (
        SELECT n.place, count(*) AS many FROM rolecall.needs n
        LEFT JOIN rolecall.task other ON other.id = n.id AND rolecall.satisfied(other.status)
        WHERE n.place > base AND other.id IS NULL GROUP BY n.place
    ) counted
    WHERE t.place = counted.place;
    -- The old ones no longer wait for a new one that is satisfied as it comes.
    UPDATE rolecall.task t SET waiting = t.waiting - counted.many, version = t.version + 1
    FROM (
        SELECT n.place, count(*) AS many FROM rolecall.needs n
        JOIN rolecall.task fresh ON fresh.id = n.id AND fresh.place > base
        WHERE n.place <= base AND rolecall.satisfied(fresh.status) GROUP BY n.place
    ) counted
    WHERE t.place = counted.place;
    PERFORM rolecall.will_wake(freed.status) FROM (
        SELECT DISTINCT t.status FROM rolecall.needs n
        JOIN rolecall.task fresh ON fresh.id = n.id AND fresh.place > base
        JOIN rolecall.task t ON t.place = n.place
        WHERE n.place <= base AND t.free) freed;
    -- Parents count their children: old parents the new ones, new parents all of them.
    UPDATE rolecall.task t SET
        open_children = t.open_children + counted.still_open, good_children = t.good_children + counted.good
    FROM (
        SELECT parent.place,
            count(*) FILTER (WHERE NOT rolecall.ended(child.status)) AS still_open,
            count(*) FILTER (WHERE rolecall.satisfied(child.status)) AS good
        FROM rolecall.family f
        JOIN rolecall.task parent ON parent.id = f.parent
        JOIN rolecall.task child ON child.place = f.place
        WHERE child.place <> parent.place AND (child.place > base OR parent.place > base)
        GROUP BY parent.place
    ) counted
    WHERE t.place = counted.place;
    PERFORM rolecall.will_wake(s) FROM (
        SELECT DISTINCT status AS s FROM rolecall.task WHERE place > base) fresh;
END $$;

-- What one write puts into a task, which ends its lease; false where the row is of another version.
CREATE FUNCTION rolecall.put(at bigint, of bigint, change jsonb, a_write text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE rolecall.task t SET
        status = change ->> 'status', attempts = (change ->> 'attempts')::bigint,
        free_at = to_timestamp((change ->> 'free_at')::double precision),
        settled = CASE WHEN a_write IS NULL THEN t.settled
            ELSE (array_prepend(a_write, t.settled))[1:4] END,
        ours = t.ours || (change -> 'ours'), version = t.version + 1,
        owner = NULL, role = NULL, host = NULL, started_at = NULL, ttl = NULL, heartbeat_at = NULL,
        lease = NULL, wish = NULL, wished_by = NULL
    WHERE t.place = at AND t.version = of;
    IF FOUND THEN
        PERFORM rolecall.will_wake(change ->> 'status');
    END IF;
    RETURN FOUND;
END $$;

-- Write what an attempt came to. ``how``: own, or for one that is gone died, expired or vanished.
-- Returns what became of it: settled, again (this very write was made before), changed (look anew),
-- or lost and why.
CREATE FUNCTION rolecall.settle(
    an_id text, a_token bigint, a_start text, a_write text, a_version bigint, how text,
    from_pid bigint, change jsonb, facts jsonb, documents text[], unblock boolean, close_stories boolean, OUT became text, OUT moves jsonb
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
BEGIN
    moves := '[]';
    SELECT place, status, token, settled, owner, started_at, ttl, heartbeat_at, lease
    INTO t FROM rolecall.task WHERE id = an_id;
    IF a_write = ANY (t.settled) THEN
        became := 'again';
    ELSIF t.place IS NULL THEN
        became := 'lost: is no longer in the queue';
    ELSIF t.token > a_token THEN
        became := 'lost: has a later attempt than this one of token ' || a_token;
    ELSIF t.token <> a_token OR how = 'vanished' AND t.owner IS NOT NULL
        OR how IN ('died', 'expired') AND t.owner IS NULL
        OR how <> 'vanished' AND t.owner IS NOT NULL AND t.started_at <> a_start THEN
        became := 'lost: is held by this attempt no more: its status is ' || t.status;
    ELSIF how = 'expired' AND t.heartbeat_at + make_interval(secs => t.ttl) > rolecall.now()
        OR how = 'died' AND (t.lease ->> 'pid')::bigint <> from_pid THEN
        became := 'lost: its attempt is alive';
    ELSE
        IF NOT rolecall.put(t.place, a_version, change, a_write) THEN
            -- Perhaps by this very write, sent before over a connection that was lost.
            SELECT CASE WHEN a_write = ANY (settled) THEN 'again' ELSE 'changed' END
            INTO became FROM rolecall.task WHERE id = an_id;
            RETURN;
        END IF;
        -- Whether there was no room before is not known until this is committed.
        PERFORM rolecall.will_wake(t.status);
        IF facts <> '[]' THEN
            PERFORM rolecall.append(facts, documents);
        END IF;
        moves := rolecall.move_on(unblock, close_stories);
        became := 'settled';
    END IF;
END $$;

-- Write what a person changes: each of ``changes`` has the place and the version that it is of.
CREATE FUNCTION rolecall.change(
    changes jsonb, facts jsonb, documents text[], unblock boolean, close_stories boolean,
    OUT became text, OUT moves jsonb
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    each jsonb;
BEGIN
    moves := '[]';
    became := 'changed';
    FOR each IN SELECT c FROM jsonb_array_elements(changes) c ORDER BY (c ->> 'place')::bigint LOOP
        PERFORM FROM rolecall.task
        WHERE place = (each ->> 'place')::bigint AND version = (each ->> 'version')::bigint FOR UPDATE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END LOOP;
    FOR each IN SELECT c FROM jsonb_array_elements(changes) c LOOP
        PERFORM rolecall.will_wake(status) FROM rolecall.task WHERE place = (each ->> 'place')::bigint;
        PERFORM rolecall.put((each ->> 'place')::bigint, (each ->> 'version')::bigint, each, NULL);
    END LOOP;
    IF facts <> '[]' THEN
        PERFORM rolecall.append(facts, documents);
    END IF;
    moves := rolecall.move_on(unblock, close_stories);
    became := 'settled';
END $$;

-- Write a person's wish into a lease.
CREATE FUNCTION rolecall.ask(an_id text, a_token bigint, a_wish text, who text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE rolecall.task SET wish = a_wish, wished_by = who, version = version + 1
    WHERE id = an_id AND token = a_token AND owner IS NOT NULL;
    RETURN FOUND;
END $$;

-- Begin the queue anew; its tasks are appended afterwards, in the same transaction. Where that is
-- not to be, nothing is changed: ``taken``, because there are tasks by now; ``live`` attempts.
CREATE FUNCTION rolecall.begin_anew(
    a_document text, some_limits jsonb, only_empty boolean, OUT taken boolean, OUT live text[]
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE rolecall.queue, rolecall.task IN ACCESS EXCLUSIVE MODE;
    taken := only_empty AND EXISTS (SELECT FROM rolecall.task);
    SELECT coalesce(array_agg(id ORDER BY id), '{}') INTO live FROM rolecall.task
    WHERE heartbeat_at + make_interval(secs => ttl) > rolecall.now();
    IF NOT taken AND live = '{}' THEN
        TRUNCATE rolecall.task, rolecall.needs, rolecall.family, rolecall.queue;
        INSERT INTO rolecall.queue (document, wip_limits) VALUES (a_document, some_limits);
    END IF;
END $$;

-- Append what is imported, after begin_anew, in parts. Their counts are right already, for all of them
-- are known to who sends them; a status that was never written by us moves nothing here.
CREATE FUNCTION rolecall.import(facts jsonb, documents text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ SELECT rolecall.put_behind(facts, documents) $$;

-- After the last part of it: what the server knows of the tasks is to fit them at once, and every
-- worker has another queue, with limits of its own.
CREATE FUNCTION rolecall.imported() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ BEGIN
    ANALYZE rolecall.task, rolecall.needs, rolecall.family;
    PERFORM pg_notify('rolecall', '');
END $$;

-- Remember something of a credential; null is to forget it.
CREATE FUNCTION rolecall.remember(a_name text, a_value jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF a_value IS NULL THEN
        DELETE FROM rolecall.note WHERE name = a_name;
        PERFORM pg_notify('rolecall', '');  -- whoever waits for it, of whatever role
    ELSE
        INSERT INTO rolecall.note (name, value) VALUES (a_name, a_value)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    END IF;
END $$;
