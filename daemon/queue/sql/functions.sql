-- What the server does for a queue. It is made anew behind each migration: what changes here needs one,
-- so that no Rolecall meets functions that it does not know.
-- (A function in SQL that is not inlined is planned anew in each transaction; one in plpgsql once.)

DO $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT tgname FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
        WHERE tgrelid = 'rolecall.task'::regclass AND pronamespace = 'rolecall'::regnamespace
    LOOP
        EXECUTE format('DROP TRIGGER %I ON rolecall.task', each.tgname);
    END LOOP;
    FOR each IN
        SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'rolecall'::regnamespace
    LOOP
        EXECUTE format('DROP FUNCTION %s', each.name);
    END LOOP;
END $$;

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

-- Whoever waits for tasks of a status, or for room in it, holds this lock, shared.
CREATE FUNCTION rolecall.waiting(status text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$ SELECT hashtextextended('rolecall waits ' || status, 0) $$;

-- And whoever may tell them holds this one, shared, until its transaction has ended.
CREATE FUNCTION rolecall.telling() RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$ SELECT hashtextextended('rolecall tells', 0) $$;

-- From now on, this session waits for tasks of these statuses: it LISTENs already, and looks next.
-- False, where others have been writing for a second who began before: to be called again soon.
CREATE FUNCTION rolecall.await(statuses text[]) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_lock_shared(rolecall.waiting(status)) FROM unnest(statuses) status;
    -- Who does not know of it yet is to end, so that the look sees what was done. (Whoever waited for
    -- this lock itself would keep others from it.)
    FOR again IN 1..100 LOOP
        IF pg_try_advisory_xact_lock(rolecall.telling()) THEN
            RETURN true;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN false;
END $$;

CREATE FUNCTION rolecall.is_awaited(status text) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN pg_try_advisory_lock(rolecall.waiting(status))
        THEN NOT pg_advisory_unlock(rolecall.waiting(status)) ELSE true END
$$;

-- Tell those who wait that tasks of this status may be claimable now, or that there may be room. Only
-- where there are any: transactions that notify commit one after the other.
CREATE FUNCTION rolecall.tell(status text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF rolecall.is_awaited(status) THEN
        PERFORM rolecall.notify(status);
    END IF;
END $$;

CREATE FUNCTION rolecall.notify(status text) RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify(('rolecall.' || status)::name::text, '') $$;  -- as LISTEN cuts it

-- What a change of a task's status means to those who wait for it, and to its parents.
CREATE FUNCTION rolecall.follow(at bigint, an_id text, old_status text, new_status text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    more integer := rolecall.satisfied(new_status)::int - rolecall.satisfied(old_status)::int;
    over integer := rolecall.ended(new_status)::int - rolecall.ended(old_status)::int;
    each record;
BEGIN
    IF more <> 0 AND an_id IS NOT NULL THEN
        FOR each IN
            SELECT t.place FROM rolecall.needs n JOIN rolecall.task t USING (place)
            WHERE n.id = an_id ORDER BY t.place FOR UPDATE OF t
        LOOP
            UPDATE rolecall.task SET waiting = waiting - more, version = version + 1
            WHERE place = each.place;
        END LOOP;
        PERFORM rolecall.tell(t.status) FROM rolecall.needs n JOIN rolecall.task t USING (place)
        WHERE n.id = an_id AND t.waiting = 0 GROUP BY t.status;
    END IF;
    IF more <> 0 OR over <> 0 THEN
        FOR each IN
            SELECT t.place FROM rolecall.family f JOIN rolecall.task t ON t.id = f.parent
            WHERE f.place = at AND t.place <> at ORDER BY t.place FOR UPDATE OF t
        LOOP
            UPDATE rolecall.task
            SET open_children = open_children - over, good_children = good_children + more
            WHERE place = each.place;
            -- A claim passes over what is locked just now.
            PERFORM rolecall.tell(t.status) FROM rolecall.task t
            WHERE t.place = each.place AND t.free AND t.owner IS NULL;
        END LOOP;
    END IF;
END $$;

-- A status that somebody writes who is no function of ours (they count the version): as if it had
-- been changed in a file. What holds the task holds it no more, and who may claim it is told.
CREATE FUNCTION rolecall.by_hand() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE rolecall.task SET version = version + 1,
        ours = ours || jsonb_build_object('status', NEW.status)
            || CASE WHEN OLD.owner IS NULL THEN '{}'::jsonb ELSE '{"agent": null, "lease": null}' END,
        owner = NULL, role = NULL, host = NULL, started_at = NULL, ttl = NULL,
        heartbeat_at = NULL, lease = NULL, wish = NULL, wished_by = NULL
    WHERE place = NEW.place;
    PERFORM pg_advisory_xact_lock_shared(rolecall.telling());
    PERFORM rolecall.follow(NEW.place, NEW.id, OLD.status, NEW.status);
    PERFORM rolecall.notify(each) FROM unnest(ARRAY[OLD.status, NEW.status]) each;
    RETURN NULL;
END $$;

CREATE TRIGGER by_hand AFTER UPDATE OF status ON rolecall.task FOR EACH ROW
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
    IF more THEN
        PERFORM pg_advisory_xact_lock_shared(rolecall.telling());
    END IF;
    WHILE more AND cardinality(moves) < 500 LOOP
        more := false;
        FOR each IN
            SELECT place, id, status, start AS target, 'its dependencies are satisfied' AS why
            FROM rolecall.task
            WHERE unblock AND status = 'blocked' AND free AND NOT stuck
            ORDER BY place LIMIT 500 FOR UPDATE SKIP LOCKED
        LOOP
            more := true;
            PERFORM rolecall.move(each.place, each.id, each.status, each.target);
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
            PERFORM rolecall.move(each.place, each.id, each.status, each.target);
            moves := moves || (to_jsonb(each) - 'place');
        END LOOP;
    END LOOP;
    RETURN to_jsonb(moves);
END $$;

CREATE FUNCTION rolecall.move(at bigint, an_id text, source text, target text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE rolecall.task SET status = target, version = version + 1,
        ours = ours || jsonb_build_object(
            'status', target, 'updated_at', rolecall.in_words(rolecall.now()))
    WHERE place = at;
    PERFORM rolecall.follow(at, an_id, source, target);
    PERFORM rolecall.tell(target);
END $$;

-- The first task, by priority, of any of these statuses, which is locked then.
CREATE FUNCTION rolecall.first_of(statuses text[], clock timestamptz, but_not text[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    best record;
    passed text[] := but_not;
BEGIN
    LOOP
        SELECT first.place, first.id, first.status INTO best FROM unnest(statuses) each, LATERAL (
            SELECT t.place, t.id, t.status, t.priority FROM rolecall.task t
            WHERE t.status = each AND t.free AND t.owner IS NULL
                AND (t.free_at IS NULL OR t.free_at <= clock) AND t.id <> ALL (passed)
            ORDER BY t.status, t.free, t.priority, t.place LIMIT 1
        ) first
        ORDER BY first.priority, first.place LIMIT 1;
        EXIT WHEN best.place IS NULL;
        PERFORM FROM rolecall.task t
        WHERE t.place = best.place AND t.status = best.status AND t.free AND t.owner IS NULL
            AND (t.free_at IS NULL OR t.free_at <= clock) FOR UPDATE SKIP LOCKED;
        EXIT WHEN FOUND;
        passed := passed || best.id;
    END LOOP;
    RETURN best.place;
END $$;

-- Win the role's next task. One at a time of those that hold in the same status: so that the WIP
-- limit is exact. It need not last before the attempt's take_over, which comes before its agent.
-- ``a_schema``: the version that the caller knows; one of another is told that there is no such function.
CREATE FUNCTION rolecall.claim(
    a_schema integer,
    a_role text, a_claims text[], a_holds text, a_limit integer, a_slots integer,
    an_owner text, a_host text, a_ttl double precision, a_lease jsonb, but_not text[],
    ignore_wip boolean, unblock boolean, close_stories boolean,
    OUT place bigint, OUT document text, OUT ours jsonb, OUT token bigint, OUT version bigint,
    OUT attempt bigint, OUT started_at text, OUT source text, OUT moves jsonb, OUT moment double precision
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    clock timestamptz := rolecall.now();
    an_id text;
    most integer;
    done text[];
BEGIN
    IF a_schema <> 2 THEN
        RAISE undefined_function USING MESSAGE = 'the schema is version 2';
    END IF;
    started_at := rolecall.in_words(clock);
    -- What moves by itself does so first; with all that it waits for, before others wait for us.
    moves := rolecall.move_on(unblock, close_stories);
    -- A SET of the function itself would end before the commit. take_over, which comes before the
    -- agent, waits for the disk, and so makes the claim last.
    SELECT CASE WHEN NOT ignore_wip THEN coalesce((q.wip_limits ->> a_role)::integer, a_limit) END,
        ARRAY[set_config('synchronous_commit', 'off', true),
            pg_advisory_xact_lock(hashtextextended('rolecall holds ' || a_holds, 0))::text]
    INTO most, done FROM rolecall.queue q;
    -- Each WHEN and what it asks is only looked at where those above it do not hold.
    UPDATE rolecall.task t SET
        status = a_holds, token = t.token + 1, version = t.version + 1,
        owner = an_owner, role = a_role, host = a_host, started_at = claim.started_at,
        ttl = a_ttl, heartbeat_at = clock, lease = a_lease, wish = NULL, wished_by = NULL,
        ours = t.ours || jsonb_build_object(
            'status', a_holds, 'agent', a_role, 'token', t.token + 1, 'updated_at', claim.started_at,
            'lease', jsonb_build_object(
                'owner', an_owner, 'token', t.token + 1, 'started_at', claim.started_at)
                || CASE WHEN cardinality(a_claims) > 1
                    THEN jsonb_build_object('from', t.status) ELSE '{}' END)
    WHERE t.place = CASE
        -- No room: tasks in the held status count, with a lease or without.
        WHEN (SELECT count(*) >= most OR count(*) FILTER (WHERE held.role = a_role
                AND held.host = a_host
                AND held.heartbeat_at + make_interval(secs => held.ttl) > clock) >= a_slots
            FROM (SELECT h.role, h.host, h.heartbeat_at, h.ttl FROM rolecall.task h
                WHERE h.status = a_holds AND h.owner IS NOT NULL
                UNION ALL SELECT NULL, NULL, NULL, NULL FROM rolecall.task h
                WHERE h.status = a_holds AND h.owner IS NULL LIMIT most) held) THEN NULL
        WHEN cardinality(a_claims) > 1 THEN (SELECT rolecall.first_of(a_claims, clock, but_not))
        ELSE (
            SELECT c.place FROM rolecall.task c
            WHERE c.status = a_claims[1] AND c.free AND c.owner IS NULL
                AND (c.free_at IS NULL OR c.free_at <= clock) AND c.id <> ALL (but_not)
            ORDER BY c.status, c.free, c.priority, c.place LIMIT 1 FOR UPDATE SKIP LOCKED)
        END
    RETURNING t.place, t.id, t.document, t.ours, t.token, t.version, t.attempts + 1,
        coalesce(t.ours #>> '{lease,from}', a_claims[1]), extract(epoch FROM clock)
    INTO place, an_id, document, ours, token, version, attempt, source, moment;
    IF rolecall.ended(source) THEN
        PERFORM pg_advisory_xact_lock_shared(rolecall.telling());
        PERFORM rolecall.follow(place, an_id, source, a_holds);
    END IF;
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
    PERFORM rolecall.tell(locked.status) FROM (
        SELECT t.status FROM rolecall.task t WHERE t.id IN (
            SELECT n.id FROM rolecall.needs n WHERE n.place > base) AND t.place <= base
        ORDER BY t.place FOR SHARE) locked;
    PERFORM rolecall.tell(locked.status) FROM (
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
    PERFORM rolecall.tell(freed.status) FROM (
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
    PERFORM rolecall.tell(s) FROM (
        SELECT DISTINCT t.status AS s FROM rolecall.task t JOIN rolecall.family f ON f.parent = t.id
        WHERE f.place > base AND t.place <= base AND t.free AND t.owner IS NULL) parents;
    PERFORM rolecall.tell(s) FROM (
        SELECT DISTINCT status AS s FROM rolecall.task WHERE place > base) fresh;
END $$;

-- What a person puts into a task, which ends its lease.
CREATE FUNCTION rolecall.put(at bigint, change jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    was record;
BEGIN
    SELECT id, status INTO was FROM rolecall.task WHERE place = at;
    UPDATE rolecall.task t SET
        status = change ->> 'status', attempts = (change ->> 'attempts')::bigint,
        free_at = to_timestamp((change ->> 'free_at')::double precision),
        ours = t.ours || (change -> 'ours'), version = t.version + 1,
        owner = NULL, role = NULL, host = NULL, started_at = NULL, ttl = NULL, heartbeat_at = NULL,
        lease = NULL, wish = NULL, wished_by = NULL
    WHERE t.place = at;
    PERFORM rolecall.follow(at, was.id, was.status, change ->> 'status');
    PERFORM rolecall.tell(change ->> 'status');
END $$;

-- Write what an attempt came to. ``how``: own, or for one that is gone died, expired or vanished.
-- ``source``: the status of the version that it was decided on. Returns what became of it: settled,
-- again (this very write was made before), changed (look anew), or lost and why.
CREATE FUNCTION rolecall.settle(
    an_id text, a_token bigint, a_start text, a_write text, a_version bigint, how text,
    from_pid bigint, source text, target text, some_attempts bigint, a_time double precision,
    change jsonb, facts jsonb, documents text[], unblock boolean, close_stories boolean,
    OUT became text, OUT moves jsonb
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at bigint;
    is_kin boolean := false;  -- it ends, and others wait for it, or it has a parent
    t record;
    held text;
BEGIN
    moves := '[]';
    held := pg_advisory_xact_lock_shared(rolecall.telling())::text;
    UPDATE rolecall.task w SET
        status = target, attempts = some_attempts, free_at = to_timestamp(a_time),
        settled = (array_prepend(a_write, w.settled))[1:4],
        ours = w.ours || change, version = w.version + 1,
        owner = NULL, role = NULL, host = NULL, started_at = NULL, ttl = NULL, heartbeat_at = NULL,
        lease = NULL, wish = NULL, wished_by = NULL
    WHERE w.id = an_id AND w.version = a_version AND w.token = a_token AND w.status = source
        AND CASE how
        WHEN 'own' THEN w.owner IS NULL OR w.started_at = a_start
        WHEN 'vanished' THEN w.owner IS NULL
        WHEN 'died' THEN w.started_at = a_start AND (w.lease ->> 'pid')::bigint = from_pid
        WHEN 'expired' THEN w.started_at = a_start
            AND w.heartbeat_at + make_interval(secs => w.ttl) <= rolecall.now() END
    RETURNING w.place INTO at;
    IF FOUND THEN
        became := 'settled';
        -- (A question of its own: what others have appended who held the row before is not to be missed.)
        IF rolecall.ended(source) <> rolecall.ended(target)
            OR rolecall.satisfied(source) <> rolecall.satisfied(target) THEN
            is_kin := EXISTS (SELECT FROM rolecall.needs n WHERE n.id = an_id)
                OR EXISTS (SELECT FROM rolecall.family f WHERE f.place = at);
        END IF;
        IF is_kin THEN
            PERFORM rolecall.follow(at, an_id, source, target);
        END IF;
        -- Whether there was no room before is not known until this is committed.
        IF rolecall.is_awaited(target) OR rolecall.is_awaited(source) THEN
            PERFORM rolecall.tell(target), rolecall.tell(source);
        END IF;
        IF facts <> '[]' THEN
            PERFORM rolecall.append(facts, documents);
        END IF;
        moves := rolecall.move_on(unblock, close_stories);
        RETURN;
    END IF;
    SELECT place, status, token, settled, owner, started_at, ttl, heartbeat_at, lease
    INTO t FROM rolecall.task WHERE id = an_id;
    became := CASE
        -- Perhaps sent before over a connection that was lost.
        WHEN a_write = ANY (t.settled) THEN 'again'
        WHEN t.place IS NULL THEN 'lost: is no longer in the queue'
        WHEN t.token > a_token THEN 'lost: has a later attempt than this one of token ' || a_token
        WHEN t.token <> a_token OR how = 'vanished' AND t.owner IS NOT NULL
            OR how IN ('died', 'expired') AND t.owner IS NULL
            OR how <> 'vanished' AND t.owner IS NOT NULL AND t.started_at <> a_start
            THEN 'lost: is held by this attempt no more: its status is ' || t.status
        WHEN how = 'expired' AND t.heartbeat_at + make_interval(secs => t.ttl) > rolecall.now()
            OR how = 'died' AND (t.lease ->> 'pid')::bigint <> from_pid
            THEN 'lost: its attempt is alive'
        ELSE 'changed' END;
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
    PERFORM pg_advisory_xact_lock_shared(rolecall.telling());
    FOR each IN SELECT c FROM jsonb_array_elements(changes) c ORDER BY (c ->> 'place')::bigint LOOP
        PERFORM rolecall.tell(status) FROM rolecall.task WHERE place = (each ->> 'place')::bigint;
        PERFORM FROM rolecall.task
        WHERE place = (each ->> 'place')::bigint AND version = (each ->> 'version')::bigint FOR UPDATE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END LOOP;
    FOR each IN SELECT c FROM jsonb_array_elements(changes) c LOOP
        PERFORM rolecall.put((each ->> 'place')::bigint, each);
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA rolecall FROM PUBLIC;  -- grants.sql says who may
