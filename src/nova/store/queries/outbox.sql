-- The outbox: events that leave because something ended, and what webhooks are signed with.

-- name: get
SELECT id::text AS id, tenant_id, namespace, source, function_id::text AS function_id, target_type, target, caller,
       depth, event::text AS event, attempts
FROM event_outbox WHERE id = %(id)s AND status = 'pending'

-- name: tried
UPDATE event_outbox SET attempts = %(attempts)s, error = %(error)s WHERE id = %(id)s

-- name: end
UPDATE event_outbox SET status = %(status)s, attempts = %(attempts)s, error = %(error)s, finished_at = now()
WHERE id = %(id)s

-- name: delete_finished
DELETE FROM event_outbox WHERE id IN (
    SELECT id FROM event_outbox
    WHERE (status = 'delivered' AND finished_at < %(before_ok)s) OR (status = 'dead' AND finished_at < %(before_dead)s)
    ORDER BY finished_at LIMIT %(limit)s)

-- name: make_secret
INSERT INTO webhook_secrets (tenant_id, namespace, function_id, secret)
SELECT tenant_id, namespace, id, %(fresh)b FROM functions
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s
  AND (%(function)s::text IS NULL OR name = %(function)s) AND (%(function_id)s::uuid IS NULL OR id = %(function_id)s)
  AND (%(function)s::text IS NOT NULL OR %(function_id)s::uuid IS NOT NULL)
ON CONFLICT DO NOTHING

-- name: secret
SELECT s.secret, s.created_at FROM webhook_secrets s JOIN functions f ON f.id = s.function_id
WHERE s.tenant_id = %(tenant)s AND s.namespace = %(namespace)s
  AND (%(function)s::text IS NULL OR f.name = %(function)s) AND (%(function_id)s::uuid IS NULL OR f.id = %(function_id)s)
  AND (%(function)s::text IS NOT NULL OR %(function_id)s::uuid IS NOT NULL)

-- name: dead -- for the metrics
SELECT tenant_id AS tenant, count(*) AS events FROM event_outbox WHERE status = 'dead' GROUP BY 1
