-- The processes of the platform. Times are the database's own: a row whose lease ran out belongs to a process that is gone.

-- name: register
INSERT INTO cluster_nodes (id, plane, name, address, info, load, labels, lease_until)
VALUES (%(id)s, %(plane)s, %(name)s, %(address)s, %(info)s, %(load)s, %(labels)s, now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (id) DO UPDATE
SET info = excluded.info, load = excluded.load, last_heartbeat = now(), lease_until = excluded.lease_until
RETURNING *, false AS gone

-- name: renew
UPDATE cluster_nodes
SET load = %(load)s, last_heartbeat = now(), lease_until = now() + make_interval(secs => %(lease_s)s)
WHERE id = %(id)s
RETURNING *, false AS gone

-- name: remove
DELETE FROM cluster_nodes WHERE id = %(id)s

-- name: forget_gone
DELETE FROM cluster_nodes WHERE lease_until < now() - make_interval(secs => %(older_s)s)

-- name: alive
SELECT *, false AS gone FROM cluster_nodes
WHERE plane = %(plane)s AND lease_until > now() ORDER BY started_at, id

-- name: telling
SELECT *, false AS gone FROM cluster_nodes
WHERE load ? 'series' AND lease_until > now() ORDER BY started_at, id

-- name: get_node
SELECT *, lease_until <= now() AS gone FROM cluster_nodes WHERE id = %(id)s

-- name: lock_node
SELECT *, lease_until <= now() AS gone FROM cluster_nodes WHERE id = %(id)s FOR UPDATE

-- name: list_nodes
SELECT *, lease_until <= now() AS gone FROM cluster_nodes
WHERE (%(plane)s::text IS NULL OR plane = %(plane)s)
  AND (%(state)s::text IS NULL OR CASE WHEN lease_until <= now() THEN 'gone' ELSE state END = %(state)s)
  AND (%(after_at)s::timestamptz IS NULL OR (started_at, id) < (%(after_at)s::timestamptz, %(after_id)s))
ORDER BY started_at DESC, id DESC
LIMIT %(limit)s

-- name: change_node
UPDATE cluster_nodes SET state = %(state)s, labels = %(labels)s WHERE id = %(id)s
RETURNING *, lease_until <= now() AS gone

-- name: count_nodes
SELECT plane, CASE WHEN lease_until <= now() THEN 'gone' ELSE state END AS state, count(*) AS nodes
FROM cluster_nodes GROUP BY 1, 2
