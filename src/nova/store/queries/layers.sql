-- Layers and their versions.

-- name: ensure
INSERT INTO layers (id, tenant_id, namespace, name) VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s)
ON CONFLICT (tenant_id, namespace, name) DO NOTHING;

-- name: lock
SELECT id::text AS id, next_version FROM layers
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s
   FOR UPDATE;

-- name: same -- the version with this content and these runtimes
SELECT version FROM layer_versions WHERE layer_id = %(id)s AND artifact = %(artifact)s AND runtimes = %(runtimes)s;

-- name: take_number
UPDATE layers SET next_version = next_version + 1 WHERE id = %(id)s;

-- name: insert
INSERT INTO layer_versions (layer_id, version, artifact, size, files, runtimes, description, created_by)
VALUES (%(id)s, %(version)s, %(artifact)s, %(size)s, %(files)s, %(runtimes)s, %(description)s, %(created_by)s);

-- name: get -- `version` NULL: the newest
SELECT l.name, v.version, v.artifact, v.size, v.files, v.runtimes, v.description, v.created_by, v.created_at
  FROM layers l
  JOIN layer_versions v ON v.layer_id = l.id
 WHERE l.tenant_id = %(tenant)s AND l.namespace = %(namespace)s AND l.name = %(name)s
   AND (%(version)s::int IS NULL OR v.version = %(version)s)
 ORDER BY v.version DESC
 LIMIT 1;

-- name: hold -- as get, and nobody deletes it before this transaction ends
SELECT l.name, v.version, v.artifact, v.size, v.files, v.runtimes, v.description, v.created_by, v.created_at
  FROM layers l
  JOIN layer_versions v ON v.layer_id = l.id
 WHERE l.tenant_id = %(tenant)s AND l.namespace = %(namespace)s AND l.name = %(name)s
   AND (%(version)s::int IS NULL OR v.version = %(version)s)
 ORDER BY v.version DESC
 LIMIT 1
   FOR KEY SHARE OF v;

-- name: numbers
SELECT v.version
  FROM layers l
  JOIN layer_versions v ON v.layer_id = l.id
 WHERE l.tenant_id = %(tenant)s AND l.namespace = %(namespace)s AND l.name = %(name)s
 ORDER BY v.version DESC;

-- name: list -- the newest version of each, by name
SELECT l.name, v.version, v.artifact, v.size, v.files, v.runtimes, v.description, v.created_by, v.created_at
  FROM layers l
  JOIN LATERAL (SELECT * FROM layer_versions n WHERE n.layer_id = l.id ORDER BY n.version DESC LIMIT 1) v ON true
 WHERE l.tenant_id = %(tenant)s AND l.namespace = %(namespace)s AND l.name > %(after)s
 ORDER BY l.name
 LIMIT %(limit)s;

-- name: use
INSERT INTO function_layers (function_id, version, layer_id, layer_version)
SELECT %(function)s, %(version)s, l.id, %(layer_version)s
  FROM layers l
  JOIN functions f ON f.tenant_id = l.tenant_id AND f.namespace = l.namespace
 WHERE f.id = %(function)s AND l.name = %(name)s;

-- name: users
SELECT f.name AS function, u.version, u.layer_version, u.version = f.live_version AS live
  FROM layers l
  JOIN function_layers u ON u.layer_id = l.id
  JOIN functions f ON f.id = u.function_id
 WHERE l.tenant_id = %(tenant)s AND l.namespace = %(namespace)s AND l.name = %(name)s
   AND (f.name, u.version) > (%(after_name)s, %(after_version)s)
 ORDER BY f.name, u.version
 LIMIT %(limit)s;

-- name: delete_version
DELETE FROM layer_versions v USING layers l
 WHERE l.id = v.layer_id AND l.tenant_id = %(tenant)s AND l.namespace = %(namespace)s AND l.name = %(name)s
   AND v.version = %(version)s;

-- name: delete
DELETE FROM layers WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s;
