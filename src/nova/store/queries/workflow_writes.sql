-- What the process that has a run writes of it. See nova.store.workflow_writes.

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

-- name: begin_waits -- for messages of topics; a node that is done again may get the same message again
INSERT INTO dag_topic_waits (run_id, node_key, tenant_id, namespace, topic, filters, since)
SELECT g.run_id, g.node_key, g.tenant_id, g.namespace, g.topic, g.filters::json, g.since
FROM unnest(%(runs)b::uuid[], %(keys)b::text[], %(tenants)b::text[], %(namespaces)b::text[], %(topics)b::text[],
            %(filters)b::text[], %(since)b::timestamptz[])
     AS g (run_id, node_key, tenant_id, namespace, topic, filters, since)
ON CONFLICT (run_id, node_key) DO UPDATE
SET topic = excluded.topic, filters = excluded.filters, since = excluded.since, topic_id = NULL, next_sequence = NULL,
    taken = NULL
