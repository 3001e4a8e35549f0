-- Builds. One belongs to one version; its outcome is written to both in one transaction.
-- A build whose builder was killed reads as queued until another takes it up: nothing runs without a lease.

-- name: insert
INSERT INTO builds (id, tenant_id, namespace, function_id, version, activate, cache_key, status)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(function_id)s, %(version)s, %(activate)s, '', 'queued')

-- name: name_in_version
UPDATE function_versions SET build_id = %(id)s WHERE function_id = %(function_id)s AND version = %(version)s

-- name: set_pending -- a version that has run before keeps running while it is built again
UPDATE function_code SET compile_status = 'pending', compile_error = NULL, updated_at = now()
WHERE function_id = %(function_id)s AND version = %(version)s AND compile_status NOT IN ('not_required', 'success')

-- name: subject -- what a builder needs to know of its build
SELECT b.id, b.function_id, b.version, b.status, v.data, v.code_hash
FROM builds b JOIN function_versions v USING (function_id, version)
WHERE b.id = %(id)s

-- name: turn -- equal builds of one tenant start one after the other
SELECT pg_advisory_xact_lock(hashtextextended('nova.build.' || %(tenant)s || '.' || %(cache_key)s, 0))

-- name: twin
SELECT b.id FROM builds b
JOIN work w ON w.subject = b.id AND w.kind = 'build' AND w.tenant_id = b.tenant_id AND w.namespace = b.namespace
WHERE b.tenant_id = %(tenant)s AND b.cache_key = %(cache_key)s AND b.id <> %(id)s
  AND b.status = 'running' AND w.lease_until > now()
LIMIT 1

-- name: start
UPDATE builds SET status = 'running', started_at = coalesce(started_at, now()),
                  cache_key = %(cache_key)s, toolchain = %(toolchain)s
WHERE id = %(id)s AND status IN ('queued', 'running')

-- name: set_compiling
UPDATE function_code c SET compile_status = 'compiling', updated_at = now()
FROM builds b JOIN function_versions v USING (function_id, version)
WHERE b.id = %(id)s AND v.build_id = b.id AND c.function_id = b.function_id AND c.version = b.version
  AND c.compile_status = 'pending'

-- name: sources
SELECT f.file_path AS path, f.mode, coalesce(c.seq, 0) AS seq, coalesce(c.data, ''::bytea) AS data
FROM function_files f LEFT JOIN blob_chunks c ON c.sha256 = f.digest
WHERE f.function_id = %(function_id)s AND f.version = %(version)s
ORDER BY f.file_path, c.seq

-- name: append_log
UPDATE builds SET log = CASE
    WHEN length(log) >= %(limit)s THEN log
    WHEN length(log) + length(%(text)s) <= %(limit)s THEN log || %(text)s
    ELSE left(log || %(text)s, %(limit)s) || %(marker)s END
WHERE id = %(id)s AND status = 'running'

-- name: end
UPDATE builds SET status = %(status)s, error = %(error)s, artifact = %(artifact)s, cached = %(cached)s,
                  finished_at = now()
WHERE id = %(id)s AND status IN ('queued', 'running')
RETURNING function_id, version, activate

-- name: lock_function
SELECT id FROM functions f WHERE f.id = (SELECT function_id FROM builds WHERE id = %(id)s) FOR UPDATE

-- name: set_artifact -- only while this is still the version's own build
UPDATE function_versions SET artifact = %(artifact)s
WHERE function_id = %(function_id)s AND version = %(version)s AND build_id = %(id)s

-- name: set_success
UPDATE function_code SET compile_status = 'success', compile_error = NULL, binary_hash = %(artifact)s, updated_at = now()
WHERE function_id = %(function_id)s AND version = %(version)s

-- name: set_failed -- a version that has an artifact from before keeps it
UPDATE function_code c SET compile_status = 'failed', compile_error = %(error)s, updated_at = now()
FROM function_versions v
WHERE c.function_id = %(function_id)s AND c.version = %(version)s
  AND v.function_id = c.function_id AND v.version = c.version
  AND v.build_id = %(id)s AND v.artifact IS NULL

-- name: publish -- never from a newer live version to an older one, nor past an activation that came after the deploy
UPDATE functions SET
    live_version = CASE WHEN %(activate)s AND (live_version IS NULL
                             OR (live_version < %(version)s AND head_version >= %(version)s))
                        THEN %(version)s ELSE live_version END,
    generation = generation + 1,
    etag = %(etag)s,
    updated_at = now()
WHERE id = %(function_id)s
RETURNING tenant_id, namespace, name, generation

-- name: cached
SELECT artifact FROM build_cache WHERE tenant_id = %(tenant)s AND cache_key = %(cache_key)s

-- name: cache_used
UPDATE build_cache SET used_at = now() WHERE tenant_id = %(tenant)s AND cache_key = %(cache_key)s

-- name: remember
INSERT INTO build_cache (tenant_id, cache_key, artifact) VALUES (%(tenant)s, %(cache_key)s, %(artifact)s)
ON CONFLICT (tenant_id, cache_key) DO UPDATE SET artifact = excluded.artifact, used_at = now()

-- name: forget -- the least recently used entries beyond the tenant's share
DELETE FROM build_cache WHERE tenant_id = %(tenant)s AND cache_key IN (
    SELECT cache_key FROM (
        SELECT c.cache_key, sum(b.size) OVER (ORDER BY c.used_at DESC, c.cache_key) AS total
        FROM build_cache c JOIN blobs b ON b.sha256 = c.artifact
        WHERE c.tenant_id = %(tenant)s) sized
    WHERE total > %(limit)s)

-- name: get
SELECT b.id, f.name AS function, b.function_id, b.version, b.activate,
       CASE WHEN b.status = 'running' AND (w.lease_until IS NULL OR w.lease_until <= now()) THEN 'queued'
            ELSE b.status END AS status,
       b.cached, b.artifact, b.toolchain, b.error, b.created_at, b.started_at, b.finished_at
FROM builds b JOIN functions f ON f.id = b.function_id
LEFT JOIN work w ON w.subject = b.id AND w.kind = 'build' AND w.tenant_id = b.tenant_id AND w.namespace = b.namespace
WHERE b.id = %(id)s AND b.tenant_id = %(tenant)s AND b.namespace = %(namespace)s

-- name: list
SELECT b.id, f.name AS function, b.function_id, b.version, b.activate,
       CASE WHEN b.status = 'running' AND (w.lease_until IS NULL OR w.lease_until <= now()) THEN 'queued'
            ELSE b.status END AS status,
       b.cached, b.artifact, b.toolchain, b.error, b.created_at, b.started_at, b.finished_at
FROM builds b JOIN functions f ON f.id = b.function_id
LEFT JOIN work w ON w.subject = b.id AND w.kind = 'build' AND w.tenant_id = b.tenant_id AND w.namespace = b.namespace
WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name = %(function)s
  AND (%(before)s::uuid IS NULL OR b.id < %(before)s::uuid)
ORDER BY b.id DESC LIMIT %(limit)s

-- name: log
SELECT substr(b.log, %(offset)s + 1) AS text, b.status, b.error FROM builds b
WHERE b.id = %(id)s AND b.tenant_id = %(tenant)s AND b.namespace = %(namespace)s

-- name: rebuildable
SELECT f.id AS function_id, v.version, v.data, v.code_hash, c.compile_status
FROM functions f
JOIN function_versions v ON v.function_id = f.id
JOIN function_code c ON c.function_id = v.function_id AND c.version = v.version
WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name = %(function)s
  AND v.version = coalesce(%(version)s, f.head_version)
FOR UPDATE OF f

-- name: unfinished
SELECT id FROM builds
WHERE function_id = %(function_id)s AND version = %(version)s AND status IN ('queued', 'running') LIMIT 1

-- name: retire -- finished builds past their time, except the one a version names
DELETE FROM builds b WHERE b.id IN (
    SELECT o.id FROM builds o
    WHERE o.finished_at < now() - make_interval(secs => %(age_s)s)
      AND NOT EXISTS (SELECT FROM function_versions v WHERE v.build_id = o.id)
    LIMIT %(limit)s)
