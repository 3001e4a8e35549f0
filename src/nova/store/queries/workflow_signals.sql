-- What runs are told from outside. The row of work is locked first: see 0014_workflows.sql.

-- name: wake
UPDATE work SET run_at = now()
WHERE id = %(run)s AND kind = 'run' AND tenant_id = %(tenant)s AND namespace = %(namespace)s
RETURNING id

-- name: status
SELECT status, finished_at FROM dag_runs
WHERE id = %(run)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s

-- name: unread
SELECT count(*) AS unread FROM (SELECT FROM dag_events WHERE run_id = %(run)s AND consumed_at IS NULL LIMIT %(limit)s) e

-- name: tell
INSERT INTO dag_events (id, tenant_id, namespace, run_id, kind, key, payload, sender)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(run)s, %(kind)s, %(key)s, %(payload)s, %(sender)s)

-- name: read -- in the order in which they were committed
SELECT id::text AS id, no, kind, key, payload::text AS payload, sender FROM dag_events
WHERE run_id = %(run)s AND consumed_at IS NULL AND no > %(seen)s ORDER BY no LIMIT %(limit)s

-- name: approval
SELECT run_id::text AS run_id, node_key, status, approvers FROM approvals
WHERE id = %(id)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s

-- name: decide -- the first answer counts
UPDATE approvals SET status = %(status)s, decided_by = %(by)s, comment = %(comment)s, payload = %(payload)s,
                     decided_at = now()
WHERE id = %(id)s AND status = 'pending'
RETURNING run_id::text AS run_id
