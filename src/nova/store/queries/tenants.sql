-- name: insert_tenant
INSERT INTO tenants (id, name, status, tier) VALUES (%(id)s, %(name)s, %(status)s, %(tier)s)
ON CONFLICT (id) DO NOTHING
RETURNING *;

-- name: get_tenant
SELECT * FROM tenants WHERE id = %(id)s;

-- name: lock_tenant
SELECT * FROM tenants WHERE id = %(id)s FOR UPDATE;

-- name: list_tenants
SELECT * FROM tenants
WHERE (%(only)s::text[] IS NULL OR id = ANY (%(only)s::text[]))
  AND (%(after_at)s::timestamptz IS NULL OR (created_at, id) < (%(after_at)s::timestamptz, %(after_id)s::text))
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s;

-- name: update_tenant
UPDATE tenants SET name = %(name)s, status = %(status)s, tier = %(tier)s, updated_at = now()
WHERE id = %(id)s
RETURNING *;

-- name: allow_long_erasure
SET LOCAL statement_timeout = '10min';

-- name: erase_functions
DELETE FROM functions WHERE tenant_id = %(id)s RETURNING namespace, name;

-- name: erase_keys
DELETE FROM api_keys WHERE tenant_id = %(id)s RETURNING id;

-- name: erase_work
DELETE FROM work WHERE tenant_id = %(id)s;

-- name: erase_cache
DELETE FROM build_cache WHERE tenant_id = %(id)s;

-- name: erase_calls
DELETE FROM invocation_logs WHERE tenant_id = %(id)s;

-- name: delete_tenant
DELETE FROM tenants WHERE id = %(id)s;

-- name: insert_namespace
INSERT INTO namespaces (tenant_id, name, description) VALUES (%(tenant)s, %(name)s, %(description)s)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING *;

-- name: get_namespace
SELECT * FROM namespaces WHERE tenant_id = %(tenant)s AND name = %(name)s;

-- name: lock_namespace
SELECT * FROM namespaces WHERE tenant_id = %(tenant)s AND name = %(name)s FOR UPDATE;

-- name: list_namespaces
SELECT * FROM namespaces
WHERE tenant_id = %(tenant)s AND (%(only)s::text[] IS NULL OR name = ANY (%(only)s::text[]))
  AND (%(after_at)s::timestamptz IS NULL OR (created_at, name) < (%(after_at)s::timestamptz, %(after_name)s::text))
ORDER BY created_at DESC, name DESC
LIMIT %(limit)s;

-- name: update_namespace
UPDATE namespaces SET name = %(new_name)s, description = %(description)s
WHERE tenant_id = %(tenant)s AND name = %(name)s
RETURNING *;

-- name: namespace_content
(SELECT 'function:' || name AS item FROM functions WHERE tenant_id = %(tenant)s AND namespace = %(name)s ORDER BY name LIMIT 20)
UNION ALL
(SELECT 'layer:' || name FROM layers WHERE tenant_id = %(tenant)s AND namespace = %(name)s ORDER BY name LIMIT 20)
UNION ALL
(SELECT 'volume:' || name FROM volumes WHERE tenant_id = %(tenant)s AND namespace = %(name)s ORDER BY name LIMIT 20);

-- name: delete_namespace
DELETE FROM namespaces WHERE tenant_id = %(tenant)s AND name = %(name)s;

-- name: directory
SELECT t.id, t.status, t.tier, coalesce(array_agg(n.name) FILTER (WHERE n.name IS NOT NULL), '{}') AS namespaces
FROM tenants t LEFT JOIN namespaces n ON n.tenant_id = t.id
GROUP BY t.id, t.status, t.tier;
