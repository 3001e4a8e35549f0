-- Runs of workflows: claiming them, what is known of them, and doing them again. See nova.store.workflow_runs.

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
