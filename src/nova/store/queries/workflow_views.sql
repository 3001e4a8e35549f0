-- What people see of runs and approvals. Ids are UUIDv7, so ordering by id is ordering by creation.

-- name: run
SELECT id::text AS id, workflow_id::text AS workflow_id, workflow_name, version, key, status, input, output, error, generation,
       parent_run_id::text AS parent_run_id, forked_from::text AS forked_from, caller, source, deadline_at, created_at,
       started_at, finished_at
  FROM dag_runs
 WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: runs_of_workflow
SELECT id::text AS id, workflow_id::text AS workflow_id, workflow_name, version, key, status, error,
       parent_run_id::text AS parent_run_id, forked_from::text AS forked_from, caller, source, deadline_at, created_at,
       started_at, finished_at
  FROM dag_runs
 WHERE workflow_id = %(workflow_id)s::uuid AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
   AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s::text[]))
   AND (%(version)s::int IS NULL OR version = %(version)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: runs_of_scope
SELECT id::text AS id, workflow_id::text AS workflow_id, workflow_name, version, key, status, error,
       parent_run_id::text AS parent_run_id, forked_from::text AS forked_from, caller, source, deadline_at, created_at,
       started_at, finished_at
  FROM dag_runs
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
   AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s::text[]))
   AND (%(workflow)s::text IS NULL OR workflow_name = %(workflow)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: definition
SELECT definition FROM dag_workflow_versions WHERE workflow_id = %(workflow_id)s::uuid AND version = %(version)s;

-- name: nodes -- the nodes themselves, without what maps do for each item
SELECT node_key, item, status, attempt, input, output, error, wake_at, compensation,
       compensation_error, revision, started_at, finished_at
  FROM dag_run_nodes
 WHERE run_id = %(id)s::uuid AND item = -1;

-- name: items -- of one map, in their order
SELECT node_key, item, status, attempt, input, output, error, wake_at, compensation,
       compensation_error, revision, started_at, finished_at
  FROM dag_run_nodes
 WHERE run_id = %(id)s::uuid AND node_key = %(node)s AND item > %(after)s
   AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s::text[]))
 ORDER BY item
 LIMIT %(limit)s;

-- name: children -- the newest run that each node, or item from one to another, has started
SELECT DISTINCT ON (parent_node, parent_item) parent_node, parent_item, id::text AS id
  FROM dag_runs
 WHERE parent_run_id = %(id)s::uuid AND parent_item BETWEEN %(first)s AND %(last)s
   AND (%(node)s::text IS NULL OR parent_node = %(node)s)
 ORDER BY parent_node, parent_item, dag_runs.id DESC;

-- name: progress -- of each map
SELECT node_key, count(*) AS begun, count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       count(*) FILTER (WHERE status IN ('running', 'waiting')) AS running
  FROM dag_run_nodes
 WHERE run_id = %(id)s::uuid AND item >= 0
 GROUP BY node_key;

-- name: attempts -- of the nodes themselves, or (`node` given) of a map's items from one to another
SELECT node_key, item, generation, attempt, purpose, request_id::text AS request_id, started_at, duration_ms, error
  FROM dag_node_attempts
 WHERE run_id = %(id)s::uuid AND item BETWEEN %(first)s AND %(last)s
   AND (%(node)s::text IS NULL OR node_key = %(node)s)
 ORDER BY node_key, item, generation, started_at;

-- name: changes -- since a revision; what one revision changed comes together
SELECT n.node_key, n.item, n.status, n.attempt, n.error, n.compensation, n.compensation_error, n.revision, n.started_at,
       n.finished_at,
       CASE WHEN n.compensation IS NOT NULL THEN (
           SELECT max(a.started_at + make_interval(secs => a.duration_ms / 1000))
             FROM dag_node_attempts a
            WHERE a.run_id = n.run_id AND a.node_key = n.node_key AND a.item = n.item AND a.purpose = 'compensation'
       ) END AS compensated_at
  FROM dag_run_nodes n
 WHERE n.run_id = %(id)s::uuid AND n.revision > %(after)s
 ORDER BY n.revision
 FETCH FIRST (%(limit)s) ROWS WITH TIES;

-- name: approvals_of_run
SELECT node_key, id::text AS id FROM approvals WHERE run_id = %(id)s::uuid AND status = 'pending';

-- name: approval
SELECT id::text AS id, run_id::text AS run_id, workflow_name, node_key, title, form_schema, approvers, input, status,
       decided_by, comment, payload, created_at, expires_at, decided_at
  FROM approvals
 WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: approvals
SELECT id::text AS id, run_id::text AS run_id, workflow_name, node_key, title, form_schema, approvers, input, status,
       decided_by, comment, payload, created_at, expires_at, decided_at
  FROM approvals
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s
   AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
   AND status = ANY (%(statuses)s::text[])
   AND (%(run)s::uuid IS NULL OR run_id = %(run)s::uuid)
 ORDER BY id DESC
 LIMIT %(limit)s;
