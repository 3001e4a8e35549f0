-- Volumes, who mounts them, and the leases of those that write.

-- name: insert
INSERT INTO volumes (id, tenant_id, namespace, name, size_mb, shared, description, created_by)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(size_mb)s, %(shared)s, %(description)s, %(created_by)s)
ON CONFLICT (tenant_id, namespace, name) DO NOTHING;

-- name: get
SELECT v.id::text AS id, v.name, v.size_mb, v.shared, v.description, v.node, v.used_bytes, v.created_by, v.created_at,
       v.updated_at,
       ARRAY(SELECT DISTINCT f.name FROM function_mounts m JOIN functions f ON f.id = m.function_id
              WHERE m.volume_id = v.id ORDER BY f.name) AS mounted_by
  FROM volumes v
 WHERE v.tenant_id = %(tenant)s AND v.namespace = %(namespace)s AND v.name = %(name)s;

-- name: lock
SELECT id::text AS id, size_mb, description FROM volumes
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s
   FOR UPDATE;

-- name: hold -- nobody deletes it before this transaction ends
SELECT id::text AS id, shared FROM volumes
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s
   FOR KEY SHARE;

-- name: list
SELECT v.id::text AS id, v.name, v.size_mb, v.shared, v.description, v.node, v.used_bytes, v.created_by, v.created_at,
       v.updated_at,
       ARRAY(SELECT DISTINCT f.name FROM function_mounts m JOIN functions f ON f.id = m.function_id
              WHERE m.volume_id = v.id ORDER BY f.name) AS mounted_by
  FROM volumes v
 WHERE v.tenant_id = %(tenant)s AND v.namespace = %(namespace)s AND v.name > %(after)s
 ORDER BY v.name
 LIMIT %(limit)s;

-- name: update
UPDATE volumes SET size_mb = %(size_mb)s, description = %(description)s, updated_at = now() WHERE id = %(id)s;

-- name: delete
DELETE FROM volumes WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s;

-- name: use
INSERT INTO function_mounts (function_id, version, volume_id) VALUES (%(function)s, %(version)s, %(volume)s);

-- name: look
SELECT node, size_mb FROM volumes WHERE id = %(id)s;

-- name: settle -- it is on this node from now on, unless it is on another
UPDATE volumes SET node = coalesce(node, %(node)s) WHERE id = %(id)s RETURNING node;

-- name: take
UPDATE volumes SET node = %(node)s WHERE id = %(id)s;

-- name: tell_use
UPDATE volumes SET used_bytes = %(used_bytes)s WHERE id = %(id)s AND used_bytes <> %(used_bytes)s;

-- name: existing
SELECT id::text AS id FROM volumes WHERE id = ANY(%(ids)s::uuid[]);

-- name: acquire
INSERT INTO volume_leases AS l (volume_id, instance_id, owner, fence, until)
VALUES (%(id)s, %(instance)s, %(owner)s, 1, now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (volume_id) DO UPDATE
   SET instance_id = excluded.instance_id, owner = excluded.owner, fence = l.fence + 1, until = excluded.until
 WHERE l.instance_id IS NULL OR l.until < now()
RETURNING fence;

-- name: holder
SELECT instance_id, owner FROM volume_leases WHERE volume_id = %(id)s;

-- name: renew
UPDATE volume_leases l SET until = now() + make_interval(secs => %(lease_s)s)
  FROM unnest(%(ids)s::uuid[], %(fences)s::bigint[]) AS held (volume_id, fence)
 WHERE l.volume_id = held.volume_id AND l.fence = held.fence AND l.instance_id IS NOT NULL
RETURNING l.volume_id::text AS id, l.fence;

-- name: release
UPDATE volume_leases SET instance_id = NULL
 WHERE volume_id = ANY(%(ids)s::uuid[]) AND instance_id = %(instance)s;

-- name: release_all -- of a process that is not there any more
UPDATE volume_leases SET instance_id = NULL WHERE owner = %(owner)s AND instance_id IS NOT NULL;
