-- Functions. Ids are UUIDv7, so ordering by id is ordering by creation.

-- name: lookup
SELECT f.id::text AS id, f.tenant_id, f.namespace, f.name, f.data, f.live_version, f.head_version, f.generation, f.etag,
       f.created_by, f.created_at, f.updated_at,
       (SELECT max(v.version) FROM function_versions v WHERE v.function_id = f.id) AS latest_version,
       (SELECT max(c.version) FROM function_code c
         WHERE c.function_id = f.id AND c.compile_status IN ('not_required', 'success')) AS latest_built,
       (SELECT coalesce(jsonb_object_agg(a.name, a.data), '{}') FROM function_aliases a
         WHERE a.function_id = f.id) AS aliases,
       (SELECT jsonb_build_object('alias', r.alias, 'baseline', r.baseline, 'target', r.target, 'weight', r.weight,
                                  'sticky', r.policy -> 'sticky')
          FROM function_rollouts r
         WHERE r.function_id = f.id AND r.status IN ('running', 'paused')) AS rollout,
       (SELECT s.policy FROM function_shadows s WHERE s.function_id = f.id) AS shadow
  FROM functions f
 WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name = %(name)s;

-- name: url_mode
SELECT coalesce(data -> 'recorded' ->> 'url_mode', 'buffered') AS mode FROM functions
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s;

-- name: lock
SELECT id::text AS id FROM functions
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s
   FOR UPDATE;

-- name: insert
INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(data)s, %(etag)s, %(created_by)s)
ON CONFLICT (tenant_id, namespace, name) DO NOTHING;

-- name: save
UPDATE functions
   SET data = %(data)s, head_version = %(head)s, live_version = %(live)s, etag = %(etag)s,
       generation = generation + 1, updated_at = now()
 WHERE id = %(id)s
RETURNING generation;

-- name: touch
UPDATE functions SET generation = generation + 1, updated_at = now() WHERE id = %(id)s RETURNING generation;

-- name: take_number
UPDATE functions SET next_version = next_version + 1 WHERE id = %(id)s RETURNING next_version - 1 AS version;

-- name: delete
DELETE FROM functions WHERE id = %(id)s;

-- name: generations
SELECT id::text AS id, generation FROM functions WHERE id = ANY(%(ids)s::uuid[]);

-- name: list
SELECT f.id::text AS id, f.tenant_id, f.namespace, f.name, f.data, f.live_version, f.head_version, f.generation, f.etag,
       f.created_by, f.created_at, f.updated_at,
       (SELECT max(n.version) FROM function_versions n WHERE n.function_id = f.id) AS latest_version,
       v.version, v.data AS config, v.code_hash, v.code_size, v.artifact, v.build_id::text AS build_id,
       v.description, v.created_by AS version_created_by, v.created_at AS version_created_at,
       c.compile_status, c.compile_error
  FROM functions f
  JOIN function_versions v ON v.function_id = f.id AND v.version = f.head_version
  JOIN function_code c ON c.function_id = f.id AND c.version = f.head_version
 WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s
   AND f.id > '00000000-0000-0000-0000-000000000000'
   AND (%(after)s::uuid IS NULL OR f.id < %(after)s::uuid)
   AND (%(runtime)s::text IS NULL OR v.data ->> 'runtime' = %(runtime)s)
   AND (%(mode)s::text IS NULL OR v.data ->> 'mode' = %(mode)s)
   AND (%(backend)s::text IS NULL OR v.data ->> 'backend' = %(backend)s)
   AND (%(compile_status)s::text IS NULL OR c.compile_status = %(compile_status)s)
   AND (%(tag)s::text IS NULL OR f.data -> 'tags' ? %(tag)s)
   AND (%(tag_value)s::text IS NULL OR f.data -> 'tags' ->> %(tag)s = %(tag_value)s)
   AND (%(q)s::text IS NULL
        OR strpos(lower(f.name), lower(%(q)s)) > 0
        OR strpos(lower(f.data ->> 'description'), lower(%(q)s)) > 0
        OR EXISTS (SELECT FROM jsonb_each_text(f.data -> 'tags') t
                    WHERE strpos(lower(t.key), lower(%(q)s)) > 0 OR strpos(lower(t.value), lower(%(q)s)) > 0))
 ORDER BY f.id DESC
 LIMIT %(limit)s;
