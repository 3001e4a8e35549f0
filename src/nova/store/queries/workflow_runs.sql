-- Runs of workflows: beginning them, and what the process that has one writes. See nova.store.workflow_runs.

-- name: targets -- what runs are to begin with, in the order asked for
SELECT g.no, w.id::text AS workflow_id, w.max_concurrent_runs, w.on_limit, w.halted, w.active_version,
       w.default_timeout_s, v.version
FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(names)b::text[], %(versions)b::int[])
     WITH ORDINALITY AS g (tenant_id, namespace, name, version, no)
JOIN dag_workflows w ON w.tenant_id = g.tenant_id AND w.namespace = g.namespace AND w.name = g.name
                        AND w.deleted_at IS NULL
LEFT JOIN dag_workflow_versions v ON v.workflow_id = w.id AND v.version = coalesce(g.version, w.active_version)

-- name: lock_workflows -- whoever counts a workflow's runs does it alone
SELECT id::text AS id, max_concurrent_runs FROM dag_workflows WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE

-- name: count_running
SELECT workflow_id::text AS workflow_id, count(*) AS running FROM dag_runs
WHERE workflow_id = ANY(%(ids)s::uuid[]) AND finished_at IS NULL AND status <> 'pending' GROUP BY 1

-- name: keyed
SELECT r.id::text AS id, g.no
FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(workflows)b::uuid[], %(keys)b::text[])
     WITH ORDINALITY AS g (tenant_id, namespace, workflow_id, key, no)
JOIN dag_runs r ON r.tenant_id = g.tenant_id AND r.namespace = g.namespace AND r.workflow_id = g.workflow_id
                   AND r.key = g.key

-- name: begin -- a run that has to wait for its turn has a row of work too, so that it can be told to end
WITH given AS (
    SELECT * FROM unnest(%(ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[], %(workflows)b::uuid[],
                         %(names)b::text[], %(versions)b::int[], %(keys)b::text[], %(statuses)b::text[],
                         %(inputs)b::text[], %(depths)b::int[], %(parents)b::uuid[], %(parent_nodes)b::text[],
                         %(parent_items)b::int[], %(forks)b::uuid[], %(callers)b::text[], %(sources)b::text[],
                         %(traceparents)b::text[], %(tracestates)b::text[], %(timeouts)b::float8[])
         AS g (id, tenant_id, namespace, workflow_id, name, version, key, status, input, depth, parent_run_id,
               parent_node, parent_item, forked_from, caller, source, traceparent, tracestate, timeout_s)
), made AS (
    INSERT INTO dag_runs (id, tenant_id, namespace, workflow_id, workflow_name, version, key, status, input, depth,
                          parent_run_id, parent_node, parent_item, forked_from, caller, source, traceparent, tracestate,
                          deadline_at, started_at)
    SELECT id, tenant_id, namespace, workflow_id, name, version, key, status, input::json, depth, parent_run_id,
           parent_node, parent_item, forked_from, caller, source, traceparent, tracestate,
           now() + make_interval(secs => timeout_s), CASE WHEN status = 'running' THEN now() END
    FROM given
    ON CONFLICT (tenant_id, namespace, workflow_id, key) WHERE key IS NOT NULL DO NOTHING
    RETURNING id, tenant_id, namespace, status, deadline_at
), queued AS (
    INSERT INTO work (id, kind, tenant_id, namespace, subject, run_at)
    SELECT id, 'run', tenant_id, namespace, id, CASE WHEN status = 'pending' THEN deadline_at ELSE now() END FROM made
)
SELECT id::text AS id FROM made

-- name: promote -- let the runs that have waited longest begin
WITH next AS (
    SELECT r.id FROM dag_runs r JOIN work w ON w.id = r.id
    WHERE r.workflow_id = %(workflow)s AND r.status = 'pending' AND r.finished_at IS NULL
    ORDER BY r.id LIMIT %(room)s
    FOR UPDATE OF w SKIP LOCKED
), due AS (
    UPDATE work w SET run_at = now() FROM next n WHERE w.id = n.id
)
UPDATE dag_runs r SET status = 'running', started_at = now() FROM next n WHERE r.id = n.id

-- name: claim -- the same share from every tenant that has runs and is active, as nova.store.jobs does it
WITH RECURSIVE found AS (
    (SELECT tenant_id FROM work WHERE kind = 'run' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT w.tenant_id FROM work w WHERE w.kind = 'run' AND w.tenant_id > f.tenant_id
            ORDER BY w.tenant_id LIMIT 1)
    FROM found f WHERE f.tenant_id IS NOT NULL
), lanes AS MATERIALIZED (
    SELECT f.tenant_id, count(*) OVER () AS lanes FROM found f JOIN tenants t ON t.id = f.tenant_id
    WHERE t.status = 'active' ORDER BY random() LIMIT %(batch)s
), due AS MATERIALIZED (
    SELECT d.id, l.lanes FROM lanes l, LATERAL (
        SELECT w.id FROM work w
        WHERE w.kind = 'run' AND w.tenant_id = l.tenant_id AND w.run_at <= now()
          AND (w.lease_until IS NULL OR w.lease_until <= now())
        ORDER BY w.run_at, w.id LIMIT greatest(1, %(batch)s / l.lanes)
        FOR UPDATE SKIP LOCKED) d
), claimed AS (
    UPDATE work SET owner = %(owner)s, fence = fence + 1, attempt = attempt + 1, claimed_at = now(),
                    lease_until = now() + make_interval(secs => %(lease_s)s)
    FROM due WHERE work.id = due.id
    RETURNING work.id, work.attempt, work.fence, due.lanes
)
SELECT c.id::text AS id, c.attempt, c.fence, c.lanes, r.tenant_id, r.namespace, r.workflow_id::text AS workflow_id,
       r.workflow_name, r.version, r.key, r.status, r.input::text AS input, r.ending, r.generation, r.depth,
       r.parent_run_id::text AS parent_run_id, r.parent_node, r.parent_item, r.caller, r.source, r.traceparent,
       r.tracestate, r.deadline_at, r.created_at, w.on_failure, w.max_concurrent_runs > 0 AS limited,
       EXISTS (SELECT FROM dag_run_nodes n WHERE n.run_id = r.id) AS begun,
       EXISTS (SELECT FROM dag_events e WHERE e.run_id = r.id AND e.consumed_at IS NULL) AS told
FROM claimed c JOIN dag_runs r ON r.id = c.id JOIN dag_workflows w ON w.id = r.workflow_id

-- name: definition
SELECT definition::text AS definition FROM dag_workflow_versions WHERE workflow_id = %(workflow)s AND version = %(version)s

-- name: nodes
SELECT node_key, item, status, attempt, generation, input::text AS input, output::text AS output, error, taken, wake_at,
       child_run_id::text AS child, completed_no, compensation, compensation_error, revision, started_at, finished_at
FROM dag_run_nodes WHERE run_id = %(run)s ORDER BY node_key, item

-- name: children
SELECT id::text AS id FROM dag_runs WHERE parent_run_id = %(run)s

-- name: hold -- the runs' rows of work and those of the runs above them, in one order, so that nobody waits in a circle
SELECT id FROM work WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE

-- name: write_nodes -- of those runs that are still the owner's; which they are
WITH given AS (
    SELECT * FROM unnest(%(runs)b::uuid[], %(fences)b::bigint[]) AS g (id, fence)
), held AS MATERIALIZED (
    SELECT w.id, w.tenant_id, w.namespace FROM work w JOIN given g ON g.id = w.id AND g.fence = w.fence
    WHERE w.owner = %(owner)s ORDER BY w.id FOR UPDATE OF w
), written AS (
    INSERT INTO dag_run_nodes AS n (run_id, node_key, item, tenant_id, namespace, status, attempt, generation, input,
                                    output, error, taken, wake_at, child_run_id, completed_no, compensation,
                                    compensation_error, revision, started_at, finished_at)
    SELECT r.run_id, r.node_key, r.item, h.tenant_id, h.namespace, r.status, r.attempt, r.generation, r.input::json,
           r.output::json, r.error::jsonb, r.taken, r.wake_at, r.child, r.completed_no, r.compensation,
           r.compensation_error::jsonb, r.revision, r.started_at, r.finished_at
    FROM json_to_recordset(%(nodes)s::json)
         AS r (run_id uuid, node_key text, item int, status text, attempt int, generation int, input text, output text,
               error text, taken int[], wake_at timestamptz, child uuid, completed_no int, compensation text,
               compensation_error text, revision int, started_at timestamptz, finished_at timestamptz)
    JOIN held h ON h.id = r.run_id
    ON CONFLICT (run_id, node_key, item) DO UPDATE
    SET status = excluded.status, attempt = excluded.attempt, generation = excluded.generation,
        input = coalesce(excluded.input, n.input), output = excluded.output, error = excluded.error,
        taken = excluded.taken, wake_at = excluded.wake_at, child_run_id = excluded.child_run_id,
        completed_no = excluded.completed_no, compensation = excluded.compensation,
        compensation_error = excluded.compensation_error, revision = excluded.revision,
        started_at = coalesce(excluded.started_at, n.started_at), finished_at = excluded.finished_at
), tried AS (
    INSERT INTO dag_node_attempts (run_id, node_key, item, generation, attempt, tenant_id, namespace, purpose, request_id,
                                   started_at, duration_ms, error)
    SELECT a.run_id, a.node_key, a.item, a.generation, a.attempt, h.tenant_id, h.namespace, a.purpose, a.request_id,
           a.started_at, a.duration_ms, a.error::jsonb
    FROM json_to_recordset(%(attempts)s::json)
         AS a (run_id uuid, node_key text, item int, generation int, attempt int, purpose text, request_id uuid,
               started_at timestamptz, duration_ms float8, error text)
    JOIN held h ON h.id = a.run_id
    ON CONFLICT DO NOTHING
)
SELECT id::text AS id FROM held

-- name: write_runs
UPDATE dag_runs r
SET status = g.status, ending = g.ending::jsonb, output = g.output::json, error = g.error::jsonb,
    finished_at = CASE WHEN g.finished THEN now() END
FROM unnest(%(ids)b::uuid[], %(statuses)b::text[], %(endings)b::text[], %(outputs)b::text[], %(errors)b::text[],
            %(finished)b::bool[]) AS g (id, status, ending, output, error, finished)
WHERE r.id = g.id

-- name: finish
DELETE FROM work WHERE id = ANY(%(ids)s::uuid[])

-- name: release -- whoever was told something that its process has not read yet is due at once
UPDATE work w
SET owner = NULL, lease_until = NULL, claimed_at = NULL, attempt = 0,
    run_at = CASE WHEN EXISTS (SELECT FROM dag_events e WHERE e.run_id = g.id AND e.consumed_at IS NULL AND e.no > g.seen)
                  THEN now() WHEN g.wake_s IS NULL THEN 'infinity' ELSE now() + make_interval(secs => g.wake_s) END
FROM unnest(%(ids)b::uuid[], %(wakes)b::float8[], %(seen)b::bigint[]) AS g (id, wake_s, seen)
WHERE w.id = g.id

-- name: consumed
UPDATE dag_events SET consumed_at = now() WHERE id = ANY(%(ids)s::uuid[]) AND consumed_at IS NULL

-- name: open_approvals
INSERT INTO approvals (id, tenant_id, namespace, run_id, workflow_name, node_key, title, form_schema, approvers, input,
                       expires_at)
SELECT g.id, g.tenant_id, g.namespace, g.run_id, g.workflow, g.node_key, g.title, g.form_schema::json,
       g.approvers::jsonb, g.input::json, g.expires_at
FROM unnest(%(ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[], %(runs)b::uuid[], %(workflows)b::text[],
            %(keys)b::text[], %(titles)b::text[], %(schemas)b::text[], %(approvers)b::text[], %(inputs)b::text[],
            %(expiries)b::timestamptz[])
     AS g (id, tenant_id, namespace, run_id, workflow, node_key, title, form_schema, approvers, input, expires_at)

-- name: close_approvals
UPDATE approvals a SET status = g.status, decided_at = now()
FROM unnest(%(runs)b::uuid[], %(keys)b::text[], %(statuses)b::text[]) AS g (run_id, node_key, status)
WHERE a.run_id = g.run_id AND a.node_key = g.node_key AND a.status = 'pending'

-- name: tell_parents -- each in the transaction that ends the child
WITH given AS (
    SELECT * FROM unnest(%(ids)b::uuid[], %(parents)b::uuid[], %(children)b::text[], %(payloads)b::text[])
         AS g (id, run_id, child, payload)
), woken AS (
    UPDATE work w SET run_at = now() FROM given g WHERE w.id = g.run_id RETURNING w.id, w.tenant_id, w.namespace
)
INSERT INTO dag_events (id, tenant_id, namespace, run_id, kind, key, payload, sender)
SELECT g.id, w.tenant_id, w.namespace, g.run_id, 'child', g.child, g.payload::json, 'run:' || g.child
FROM given g JOIN woken w ON w.id = g.run_id

-- name: again -- a run that ended goes on; what it has done to its nodes is kept but for those that are to be done again
UPDATE dag_runs
SET status = 'running', generation = generation + 1, ending = NULL, error = NULL, output = NULL, finished_at = NULL,
    input = coalesce(%(input)s::json, input), deadline_at = now() + (deadline_at - created_at)
WHERE id = %(run)s
RETURNING generation

-- name: unhear -- what it was told too late
UPDATE dag_events SET consumed_at = now() WHERE run_id = %(run)s AND consumed_at IS NULL AND kind <> 'event'

-- name: requeue
INSERT INTO work (id, kind, tenant_id, namespace, subject) VALUES (%(run)s, 'run', %(tenant)s, %(namespace)s, %(run)s)

-- name: forget_nodes -- which are to be done again: those named, and whatever did not end well or was undone
DELETE FROM dag_run_nodes
WHERE run_id = %(run)s
  AND (%(everything)s OR node_key = ANY(%(paths)s::text[]) OR compensation IS NOT NULL
       OR NOT (status = 'succeeded' OR (status = 'failed' AND taken IS NOT NULL)))

-- name: copy_nodes -- to a run that was forked
INSERT INTO dag_run_nodes (run_id, node_key, item, tenant_id, namespace, status, attempt, input, output, error, taken,
                           child_run_id, completed_no, revision, started_at, finished_at)
SELECT %(run)s, node_key, item, tenant_id, namespace, status, attempt, input, output, error, taken, child_run_id,
       completed_no, 1, started_at, finished_at
FROM dag_run_nodes
WHERE run_id = %(source)s AND node_key = ANY(%(paths)s::text[]) AND compensation IS NULL
  AND (status = 'succeeded' OR (status = 'failed' AND taken IS NOT NULL))

-- name: give_input -- to a node that is to be done again
INSERT INTO dag_run_nodes (run_id, node_key, tenant_id, namespace, status, input, generation, revision)
VALUES (%(run)s, %(path)s, %(tenant)s, %(namespace)s, 'ready', %(input)s, %(generation)s, 1)

-- name: run
SELECT r.id::text AS id, r.tenant_id, r.namespace, r.workflow_id::text AS workflow_id, r.workflow_name, r.version,
       r.status, r.input::text AS input, r.generation, r.caller, r.source, r.traceparent, r.tracestate,
       r.parent_run_id::text AS parent_run_id, r.finished_at,
       extract(epoch FROM r.deadline_at - r.created_at)::float8 AS timeout_s, w.deleted_at, w.max_concurrent_runs
FROM dag_runs r JOIN dag_workflows w ON w.id = r.workflow_id
WHERE r.id = %(run)s AND r.tenant_id = %(tenant)s AND r.namespace = %(namespace)s

-- name: lock_run
SELECT status FROM dag_runs WHERE id = %(run)s FOR UPDATE

-- name: delete_finished
DELETE FROM dag_runs WHERE id IN (
    SELECT id FROM dag_runs WHERE finished_at < %(before)s ORDER BY finished_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)

-- name: delete_workflows -- deleted ones without runs
DELETE FROM dag_workflows w WHERE w.id IN (
    SELECT d.id FROM dag_workflows d
    WHERE d.deleted_at IS NOT NULL AND NOT EXISTS (SELECT FROM dag_runs r WHERE r.workflow_id = d.id)
    ORDER BY d.deleted_at LIMIT %(limit)s)
