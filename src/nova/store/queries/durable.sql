-- Durable executions: see nova.store.durable. Times are the database's own.

-- name: start -- with their work; a row for each that is new. Those that are taken have begun their first run.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)b::uuid[], %(work_ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[],
                         %(function_ids)b::uuid[], %(functions)b::text[], %(versions)b::int[], %(names)b::text[],
                         %(inputs)b::text[], %(callers)b::text[], %(sources)b::text[], %(chains)b::text[],
                         %(traceparents)b::text[], %(tracestates)b::text[], %(lives)b::float8[], %(takes)b::int[])
        AS g (id, work_id, tenant_id, namespace, function_id, function_name, version, name, input, caller, source, chain,
              traceparent, tracestate, life_s, take)
), made AS (
    INSERT INTO durable_executions (id, tenant_id, namespace, function_id, function_name, version, name, input, caller,
                                    source, chain, traceparent, tracestate, deadline_at, epoch, rev, lost)
    SELECT id, tenant_id, namespace, function_id, function_name, version, name, input, caller, source,
           CASE WHEN chain = '' THEN '{}' ELSE string_to_array(chain, '>') END, traceparent, tracestate,
           now() + make_interval(secs => life_s), take, take, take
    FROM given
    ON CONFLICT (tenant_id, namespace, function_id, name) DO NOTHING
    RETURNING *
), queued AS (
    INSERT INTO work (id, kind, tenant_id, namespace, subject, owner, fence, attempt, claimed_at, lease_until)
    SELECT g.work_id, %(kind)s, g.tenant_id, g.namespace, g.id, CASE WHEN g.take = 1 THEN %(owner)s END, g.take, g.take,
           CASE WHEN g.take = 1 THEN now() END,
           CASE WHEN g.take = 1 THEN now() + make_interval(secs => %(lease_s)s) END
    FROM given g JOIN made USING (id)
)
SELECT m.*, g.work_id, g.take = 1 AS taken FROM made m JOIN given g USING (id)

-- name: named
SELECT * FROM durable_executions
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function_id)s AND name = %(name)s

-- name: get -- by its key and no other index, also in a plan that was made while there was none
SELECT * FROM (SELECT * FROM durable_executions WHERE id = %(id)s OFFSET 0) e
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s

-- name: lock
SELECT * FROM durable_executions WHERE id = %(id)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s FOR UPDATE

-- name: checkpoint -- several executions' at once; a row for each and each operation that it changed
WITH c AS MATERIALIZED (
    SELECT * FROM unnest(%(executions)s::uuid[], %(functions)s::uuid[], %(epochs)s::bigint[], %(progress)s::boolean[])
        AS c (id, function_id, epoch, progress)
), u AS MATERIALIZED (
    SELECT * FROM unnest(%(u_execution)s::uuid[], %(u_ord)s::int[], %(u_id)s::text[], %(u_parent)s::text[],
                         %(u_name)s::text[], %(u_type)s::text[], %(u_sub_type)s::text[], %(u_status)s::text[],
                         %(u_tries)s::int[], %(u_result)s::text[], %(u_error)s::text[], %(u_replay)s::boolean[],
                         %(u_wake_s)s::float8[], %(u_timeout_s)s::float8[], %(u_heartbeat_s)s::float8[],
                         %(u_call)s::uuid[], %(u_started_ms)s::float8[], %(u_ended)s::boolean[])
        AS u (execution_id, ord, id, parent_id, name, type, sub_type, status, tries, result, error, replay, wake_s,
              timeout_s, heartbeat_s, call_id, started_ms, ended)
), known AS MATERIALIZED (
    SELECT o.execution_id, o.id,
           (o.type, o.name, o.sub_type, o.parent_id) IS DISTINCT FROM (u.type, u.name, u.sub_type, u.parent_id) AS differs
    FROM u JOIN durable_operations o ON o.execution_id = u.execution_id AND o.id = u.id
), more AS MATERIALIZED (
    SELECT c.id, count(u.id) - count(k.id) AS new, coalesce(bool_or(k.differs), false) AS differs
    FROM c LEFT JOIN u ON u.execution_id = c.id LEFT JOIN known k ON k.execution_id = u.execution_id AND k.id = u.id
    GROUP BY c.id
), e AS (
    UPDATE durable_executions d
    SET rev = d.rev + 1, steps = d.steps + m.new, lost = CASE WHEN c.progress THEN 0 ELSE d.lost END
    FROM c JOIN more m ON m.id = c.id
    WHERE d.id = c.id AND d.function_id = c.function_id AND d.epoch = c.epoch AND d.status = 'running'
      AND NOT m.differs AND d.steps + m.new <= %(most)s
    RETURNING d.id, d.rev
), w AS (
    INSERT INTO durable_operations AS o (execution_id, id, place, rev, parent_id, name, type, sub_type, status, attempt,
                                         result, error, replay, wake_at, timeout_at, heartbeat_s, call_id, started_at,
                                         ended_at)
    SELECT e.id, u.id, e.rev * 1000 + u.ord, e.rev, u.parent_id, u.name, u.type, u.sub_type, u.status, u.tries,
           u.result, u.error, u.replay, now() + make_interval(secs => u.wake_s),
           now() + make_interval(secs => u.timeout_s), u.heartbeat_s, u.call_id,
           least(now(), coalesce(to_timestamp(u.started_ms / 1000), now())), CASE WHEN u.ended THEN now() END
    FROM u JOIN e ON e.id = u.execution_id
    ON CONFLICT (execution_id, id) DO UPDATE
    SET status = EXCLUDED.status, rev = EXCLUDED.rev, attempt = o.attempt + EXCLUDED.attempt, result = EXCLUDED.result,
        error = EXCLUDED.error, replay = EXCLUDED.replay, wake_at = EXCLUDED.wake_at, ended_at = EXCLUDED.ended_at
    WHERE o.status IN ('STARTED', 'PENDING', 'READY') AND o.type IN ('STEP', 'CONTEXT')
    RETURNING execution_id, id, place, parent_id, name, type, sub_type, status, attempt, result, error, replay, wake_at,
              started_at, ended_at
)
SELECT c.id AS execution, e.rev, d.steps, d.epoch = c.epoch AND d.status = 'running' AND d.function_id = c.function_id
       AS ours, m.differs, w.*
FROM c JOIN more m ON m.id = c.id LEFT JOIN durable_executions d ON d.id = c.id LEFT JOIN e ON e.id = c.id
LEFT JOIN w ON w.execution_id = e.id

-- name: checkpoint_one -- a single operation that is new; no row when it is not, or the run may not write
WITH e AS (
    UPDATE durable_executions SET rev = rev + 1, steps = steps + 1, lost = 0
    WHERE id = %(execution)s AND function_id = %(function)s AND epoch = %(epoch)s AND status = 'running'
      AND steps < %(most)s
      AND NOT EXISTS (SELECT FROM durable_operations WHERE execution_id = %(execution)s AND id = %(id)s)
    RETURNING id, rev
)
INSERT INTO durable_operations (execution_id, id, place, rev, parent_id, name, type, sub_type, status, attempt, result,
                                replay, started_at, ended_at)
SELECT e.id, %(id)s, e.rev * 1000, e.rev, %(parent)s, %(name)s, %(type)s, %(sub_type)s, %(status)s, %(tries)s, %(result)s,
       %(replay)s, least(now(), coalesce(to_timestamp(%(started_ms)s::float8 / 1000), now())), now()
FROM e
RETURNING rev, place, attempt, started_at, ended_at -- the revision first

-- name: changed -- operations that changed after a revision
SELECT * FROM durable_operations WHERE execution_id = %(execution)s AND rev > %(after)s ORDER BY place

-- name: operations -- of an execution whose run is the asker's
SELECT o.* FROM durable_operations o JOIN durable_executions e ON e.id = o.execution_id
WHERE e.id = %(execution)s AND e.function_id = %(function_id)s AND e.epoch = %(epoch)s AND e.status = 'running'
  AND o.place > %(after)s AND o.place >= 0
ORDER BY o.place LIMIT %(limit)s

-- name: ripen -- what time has changed
UPDATE durable_operations o
SET status = CASE type WHEN 'WAIT' THEN 'SUCCEEDED' WHEN 'STEP' THEN 'READY' ELSE 'TIMED_OUT' END,
    error = CASE type WHEN 'CALLBACK' THEN
        CASE WHEN timeout_at IS NULL OR timeout_at > now()
             THEN '{"ErrorType":"Callback.Heartbeat","ErrorMessage":"no heartbeat of the callback came in time"}'
             ELSE '{"ErrorType":"Callback.Timeout","ErrorMessage":"the callback did not come in time"}' END
        ELSE o.error END,
    ended_at = CASE type WHEN 'STEP' THEN NULL ELSE now() END,
    wake_at = NULL, rev = e.rev
FROM durable_executions e
WHERE e.id = %(execution)s AND o.execution_id = e.id AND o.wake_at <= now() AND o.status IN ('STARTED', 'PENDING')

-- name: begin -- a run; none: it has ended, or a later run owns it
UPDATE durable_executions
SET epoch = %(epoch)s, status = 'running', fresh = false, wake_at = NULL, rev = rev + 1, lost = lost + 1
WHERE id = %(id)s AND epoch < %(epoch)s AND status IN ('running', 'suspended')
RETURNING *, deadline_at <= now() AS expired

-- name: first_page
SELECT * FROM durable_operations WHERE execution_id = %(execution)s AND place >= 0 ORDER BY place LIMIT %(limit)s

-- name: own -- the run's, until the end of the transaction
SELECT *, deadline_at <= now() AS expired FROM durable_executions
WHERE id = %(id)s AND epoch = %(epoch)s AND status = 'running' FOR UPDATE

-- name: next_wake -- and whether anything is awaited at all
SELECT extract(epoch FROM min(wake_at) - now())::float8 AS seconds,
       coalesce(bool_or(status = 'PENDING' OR type IN ('WAIT', 'CALLBACK', 'CHAINED_INVOKE')), false) AS awaited
FROM durable_operations WHERE execution_id = %(execution)s AND status IN ('STARTED', 'PENDING')

-- name: suspend
UPDATE durable_executions SET status = 'suspended', lost = 0,
       wake_at = least(deadline_at, now() + make_interval(secs => %(delay_s)s))
WHERE id = %(id)s RETURNING extract(epoch FROM wake_at - now())::float8 AS seconds

-- name: forgive
UPDATE durable_executions SET lost = greatest(0, lost - 1) WHERE id = %(id)s

-- name: end_run -- with its work, which proves that it is the run's; no row: it is not any more
WITH done AS (
    DELETE FROM work WHERE id = %(work)s AND owner = %(owner)s AND fence = %(fence)s RETURNING subject
), ended AS (
    UPDATE durable_executions e
    SET status = %(status)s, output = %(output)s, error = %(error)s, ended_at = now(), wake_at = NULL
    FROM done WHERE e.id = done.subject AND e.epoch = %(epoch)s AND e.status = 'running' RETURNING e.id
)
SELECT pg_notify(%(channel)s, id::text) FROM ended

-- name: end
UPDATE durable_executions SET status = %(status)s, output = %(output)s, error = %(error)s, ended_at = now(), wake_at = NULL
WHERE id = %(id)s AND status IN ('running', 'suspended')

-- name: stir -- something came in: whoever runs it looks again, and whoever waits for time need not
UPDATE durable_executions SET fresh = true, rev = rev + 1 WHERE id = %(id)s AND status IN ('running', 'suspended')
RETURNING rev

-- name: wake
UPDATE work SET run_at = now()
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND kind = %(kind)s AND kind <> 'async'
  AND subject = %(id)s AND owner IS NULL

-- name: settle -- an operation that something outside has ended
UPDATE durable_operations SET status = %(status)s, result = %(result)s, error = %(error)s, ended_at = now(), wake_at = NULL,
       rev = %(rev)s
WHERE execution_id = %(execution)s AND id = %(id)s AND status = 'STARTED' AND type = %(type)s

-- name: operation
SELECT * FROM durable_operations WHERE execution_id = %(execution)s AND id = %(id)s

-- name: beat
UPDATE durable_operations SET wake_at = least(timeout_at, now() + make_interval(secs => heartbeat_s))
WHERE execution_id = %(execution)s AND id = %(id)s AND status = 'STARTED' AND type = 'CALLBACK' AND heartbeat_s IS NOT NULL

-- name: waiting -- the callback that an event of this name completes: the oldest
SELECT id FROM durable_operations
WHERE execution_id = %(execution)s AND type = 'CALLBACK' AND sub_type = %(sub_type)s AND name = %(name)s
  AND status = 'STARTED'
ORDER BY place LIMIT 1

-- name: keep_event -- none: there are too many already
INSERT INTO durable_events (execution_id, id, name, payload)
SELECT %(execution)s, %(id)s, %(name)s, %(payload)s
WHERE (SELECT count(*) FROM durable_events WHERE execution_id = %(execution)s) < %(most)s
RETURNING id

-- name: take_event -- the oldest of this name
DELETE FROM durable_events WHERE (execution_id, id) = (
    SELECT execution_id, id FROM durable_events WHERE execution_id = %(execution)s AND name = %(name)s ORDER BY id LIMIT 1)
RETURNING payload

-- name: page -- newest first
SELECT id, function_name, version, name, status, steps, wake_at, created_at, ended_at, error FROM durable_executions
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_name = %(function)s
  AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s))
  AND (%(name)s::text IS NULL OR name = %(name)s)
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
  AND (%(before)s::uuid IS NULL OR id < %(before)s)
ORDER BY id DESC LIMIT %(limit)s

-- name: steps
SELECT * FROM durable_operations WHERE execution_id = %(execution)s AND place > %(after)s AND place >= 0
ORDER BY place LIMIT %(limit)s

-- name: forget_from -- the first operation that failed, and what was recorded after it
DELETE FROM durable_operations WHERE execution_id = %(execution)s AND place >= (
    SELECT min(place) FROM durable_operations
    WHERE execution_id = %(execution)s AND status IN ('FAILED', 'TIMED_OUT', 'STOPPED', 'CANCELLED'))

-- name: reopen
UPDATE durable_executions
SET status = 'suspended', output = NULL, error = NULL, ended_at = NULL, lost = 0, epoch = epoch + 1, rev = rev + 1,
    deadline_at = greatest(deadline_at, now() + make_interval(secs => %(life_s)s)),
    steps = (SELECT count(*) FROM durable_operations WHERE execution_id = %(id)s)
WHERE id = %(id)s RETURNING epoch

-- name: requeue -- its work begins behind the epoch that runs of it have had
INSERT INTO work (id, kind, tenant_id, namespace, subject, fence)
VALUES (%(work_id)s, %(kind)s, %(tenant)s, %(namespace)s, %(id)s, %(epoch)s)

-- name: call -- of a function by an execution
SELECT o.id, o.status FROM durable_operations o JOIN durable_executions e ON e.id = o.execution_id
WHERE o.execution_id = %(execution)s AND o.id = %(id)s AND e.status IN ('running', 'suspended')

-- name: sweep
DELETE FROM durable_executions WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM durable_executions WHERE ended_at < %(before)s ORDER BY ended_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
