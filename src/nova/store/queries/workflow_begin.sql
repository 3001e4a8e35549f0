-- Beginning runs of workflows. See nova.store.workflow_begin.

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
