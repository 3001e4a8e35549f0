-- name: insert_key
INSERT INTO api_keys (id, tenant_id, name, key_hash, prefix, tier, enabled, permissions, namespaces, ip_allow,
                      description, created_by, expires_at)
VALUES (%(id)s, %(tenant)s, %(name)s, %(key_hash)s, %(prefix)s, %(tier)s, %(enabled)s, %(permissions)s, %(namespaces)s,
        %(ip_allow)s, %(description)s, %(created_by)s, %(expires_at)s)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING *;

-- name: get_key
SELECT * FROM api_keys WHERE tenant_id = %(tenant)s AND name = %(name)s;

-- name: lock_key
SELECT * FROM api_keys WHERE tenant_id = %(tenant)s AND name = %(name)s FOR UPDATE;

-- name: key_by_id
SELECT * FROM api_keys WHERE id = %(id)s;

-- name: all_keys
SELECT * FROM api_keys;

-- name: list_keys
SELECT * FROM api_keys
WHERE tenant_id = %(tenant)s
  AND (%(after_at)s::timestamptz IS NULL OR (created_at, id) < (%(after_at)s::timestamptz, %(after_id)s::uuid))
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s;

-- name: update_key
UPDATE api_keys
SET tier = %(tier)s, enabled = %(enabled)s, permissions = %(permissions)s, namespaces = %(namespaces)s,
    ip_allow = %(ip_allow)s, description = %(description)s, expires_at = %(expires_at)s, updated_at = now()
WHERE tenant_id = %(tenant)s AND name = %(name)s
RETURNING *;

-- name: rotate_key
UPDATE api_keys
SET previous_hash = CASE WHEN %(grace_s)s > 0 THEN key_hash END,
    previous_until = CASE WHEN %(grace_s)s > 0 THEN now() + make_interval(secs => %(grace_s)s) END,
    key_hash = %(key_hash)s, updated_at = now()
WHERE tenant_id = %(tenant)s AND name = %(name)s
RETURNING *;

-- name: delete_key
DELETE FROM api_keys WHERE tenant_id = %(tenant)s AND name = %(name)s RETURNING id;

-- name: touch_key
UPDATE api_keys SET last_used_at = %(at)s WHERE id = %(id)s AND (last_used_at IS NULL OR last_used_at < %(at)s);
