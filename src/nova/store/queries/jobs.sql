-- Jobs, the consumer's side. Every write proves the claim by owner and fence; a row whose fence is stale is left alone.

-- name: claim -- the same share from every tenant that has jobs and is active; only as much as runs at once. Of a tenant's jobs
-- those with a higher priority first. Lanes are found by skipping through the index, so a tenant's backlog costs nothing here.
WITH RECURSIVE found AS (
    (SELECT tenant_id FROM work WHERE kind = 'async' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT w.tenant_id FROM work w WHERE w.kind = 'async' AND w.tenant_id > f.tenant_id
            ORDER BY w.tenant_id LIMIT 1)
    FROM found f WHERE f.tenant_id IS NOT NULL
), lanes AS MATERIALIZED (
    SELECT f.tenant_id, count(*) OVER () AS lanes FROM found f JOIN tenants t ON t.id = f.tenant_id
    WHERE t.status = 'active' AND NOT EXISTS (SELECT FROM async_gate WHERE paused)
    ORDER BY random() LIMIT %(batch)s
), due AS MATERIALIZED (
    SELECT d.id, d.lost_at, l.lanes FROM lanes l, LATERAL (
        SELECT t.id, t.lost_at FROM (VALUES (0::smallint), (1::smallint), (2::smallint)) AS p (priority), LATERAL (
            SELECT w.id, CASE WHEN w.owner IS NOT NULL THEN w.claimed_at END AS lost_at FROM work w
            WHERE w.kind = 'async' AND w.tenant_id = l.tenant_id AND w.priority = p.priority AND w.run_at <= now()
              AND (w.lease_until IS NULL OR w.lease_until <= now())
            ORDER BY w.run_at, w.id LIMIT greatest(1, %(batch)s / l.lanes)
            FOR UPDATE SKIP LOCKED) t
        LIMIT greatest(1, %(batch)s / l.lanes)) d
), claimed AS (
    UPDATE work SET owner = %(owner)s, fence = fence + 1, attempt = attempt + 1, claimed_at = now(),
                    lease_until = now() + make_interval(secs => %(lease_s)s)
    FROM due WHERE work.id = due.id
    RETURNING work.id, work.attempt, work.fence, due.lost_at, due.lanes
)
SELECT c.id::text AS id, c.attempt, c.fence, c.lanes, a.tenant_id, a.namespace, a.function_id::text AS function_id, a.function_name, a.qualifier,
       a.payload::text AS payload, a.max_attempts, a.backoff_base_ms, a.backoff_max_ms, a.max_age_s, a.depth,
       a.generation, a.source, a.caller, a.traceparent, a.tracestate, a.created_at,
       extract(epoch FROM now() - a.queued_at)::float8 AS age_s, jsonb_array_length(a.attempts) + (c.lost_at IS NOT NULL)::int AS recorded, c.lost_at,
       f.data #> '{recorded,async_destinations}' AS destinations,
       a.priority, a.concurrency_key, a.concurrency_limit, a.callback_url, a.queued_at AS due,
       (f.data #>> '{recorded,async_policy,max_inflight}')::int AS max_inflight,
       (f.data #>> '{recorded,async_policy,rate_limit_per_s}')::float8 AS rate,
       a.paused OR EXISTS (SELECT FROM async_pauses p WHERE p.tenant_id = a.tenant_id AND p.namespace = a.namespace
                                                        AND p.function_id = a.function_id) AS held
FROM claimed c JOIN async_invocations a ON a.id = c.id LEFT JOIN functions f ON f.id = a.function_id

-- name: next_due -- of every tenant and priority the first that waits for its time
WITH RECURSIVE found AS (
    (SELECT tenant_id FROM work WHERE kind = 'async' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT w.tenant_id FROM work w WHERE w.kind = 'async' AND w.tenant_id > f.tenant_id
            ORDER BY w.tenant_id LIMIT 1)
    FROM found f WHERE f.tenant_id IS NOT NULL
)
SELECT extract(epoch FROM min(d.run_at) - clock_timestamp())::float8 AS seconds
FROM found f, (VALUES (0::smallint), (1::smallint), (2::smallint)) AS p (priority), LATERAL (
    SELECT w.run_at FROM work w
    WHERE w.kind = 'async' AND w.tenant_id = f.tenant_id AND w.priority = p.priority
      AND w.run_at > now() AND w.run_at < 'infinity'
    ORDER BY w.run_at LIMIT 1) d

-- name: tell_lost -- of attempts of which nobody was left to tell
UPDATE async_invocations a
SET attempts = a.attempts || jsonb_build_array(jsonb_build_object(
        'no', jsonb_array_length(a.attempts) + 1, 'started_at', g.lost_at, 'request_id', NULL, 'duration_ms', NULL,
        'error', jsonb_build_object('type', 'Nova.WorkerLost', 'message', 'the worker was lost under the call',
                                    'stack', '[]'::jsonb))),
    started_at = coalesce(a.started_at, g.lost_at)
FROM unnest(%(ids)b::uuid[], %(lost)b::timestamptz[]) AS g (id, lost_at)
WHERE a.id = g.id AND jsonb_array_length(a.attempts) < %(kept)s

-- name: end
WITH given AS (
    SELECT * FROM unnest(%(ids)b::uuid[], %(fences)b::bigint[], %(statuses)b::text[], %(numbers)b::int[],
                         %(request_ids)b::uuid[], %(versions)b::int[], %(outputs)b::text[], %(errors)b::text[],
                         %(attempts)b::text[], %(started)b::timestamptz[])
         AS g (id, fence, status, attempt, request_id, version, output, error, attempts, started_at)
), held AS (
    DELETE FROM work w USING given g WHERE w.id = g.id AND w.fence = g.fence AND w.owner = %(owner)s RETURNING g.*
)
UPDATE async_invocations a
SET status = g.status, attempt = g.attempt, request_id = g.request_id, version = g.version, output = g.output::json,
    error = g.error::jsonb, paused = false,
    attempts = (CASE WHEN jsonb_array_length(a.attempts) >= %(kept)s THEN a.attempts - 0 ELSE a.attempts END)
               || g.attempts::jsonb,
    started_at = coalesce(a.started_at, g.started_at), finished_at = now(),
    keep_until = now() + make_interval(secs => a.keep_s)
FROM held g WHERE a.id = g.id
RETURNING a.id::text AS id

-- name: send_on -- to the outbox, for jobs whose end this transaction has written
WITH given AS (
    SELECT * FROM unnest(%(ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[], %(sources)b::text[],
                         %(function_ids)b::uuid[], %(types)b::text[], %(targets)b::text[], %(callers)b::text[],
                         %(depths)b::int[], %(events)b::text[])
         AS g (id, tenant_id, namespace, source, function_id, target_type, target, caller, depth, event)
), outbox AS (
    INSERT INTO event_outbox (id, tenant_id, namespace, source, function_id, target_type, target, caller, depth, event)
    SELECT id, tenant_id, namespace, source, function_id, target_type, target, caller, depth, event::json FROM given
    ON CONFLICT (tenant_id, namespace, source) DO NOTHING
    RETURNING id, tenant_id, namespace
)
INSERT INTO work (id, kind, tenant_id, namespace, subject) SELECT id, 'delivery', tenant_id, namespace, id FROM outbox

-- name: put_back -- to be tried again; a paused job, or one of a paused function, waits for whoever resumes it
WITH given AS (
    SELECT * FROM unnest(%(ids)b::uuid[], %(fences)b::bigint[], %(delays)b::float8[], %(forgiven)b::int[],
                         %(attempts)b::text[], %(started)b::timestamptz[])
         AS g (id, fence, delay_s, forgiven, attempts, started_at)
), released AS (
    UPDATE work w
    SET owner = NULL, lease_until = NULL, claimed_at = NULL, attempt = w.attempt - g.forgiven,
        run_at = CASE WHEN a.paused OR EXISTS (
                          SELECT FROM async_pauses p WHERE p.tenant_id = a.tenant_id AND p.namespace = a.namespace
                                                       AND p.function_id = a.function_id)
                      THEN 'infinity' ELSE now() + make_interval(secs => g.delay_s) END
    FROM given g JOIN async_invocations a ON a.id = g.id
    WHERE w.id = g.id AND w.fence = g.fence AND w.owner = %(owner)s
    RETURNING g.*
)
UPDATE async_invocations a
SET attempts = (CASE WHEN jsonb_array_length(a.attempts) >= %(kept)s THEN a.attempts - 0 ELSE a.attempts END)
               || g.attempts::jsonb,
    started_at = coalesce(a.started_at, g.started_at), next_run_at = now() + make_interval(secs => g.delay_s)
FROM released g WHERE a.id = g.id
RETURNING a.id::text AS id

-- name: sweep
VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE FALSE) work
