-- Asynchronous invocations: what producers write and what readers and operators ask for. The consumer's side is jobs.sql.

-- name: add -- all of it, or nothing for a job whose function is not there
WITH input AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(tenants)s::text[], %(namespaces)s::text[], %(functions)s::text[], %(function_ids)s::uuid[],
        %(qualifiers)s::text[], %(payloads)b::text[], %(max_attempts)s::int[], %(backoff_bases)s::int[],
        %(backoff_maxes)s::int[], %(max_ages)s::int[], %(delays)s::float8[], %(depths)s::int[], %(sources)s::text[],
        %(callers)s::text[], %(traceparents)s::text[], %(tracestates)s::text[], %(keys)s::text[]
    ) AS i (id, tenant_id, namespace, function_name, function_id, qualifier, payload, max_attempts, backoff_base_ms,
            backoff_max_ms, max_age_s, delay_s, depth, source, caller, traceparent, tracestate, idempotency_key)
), known AS (
    SELECT i.*, f.id AS known_id, f.data #> '{recorded,async_policy}' AS policy,
           now() + make_interval(secs => i.delay_s) AS due,
           EXISTS (SELECT FROM async_pauses p WHERE p.tenant_id = f.tenant_id AND p.namespace = f.namespace
                                                AND p.function_id = f.id) AS held
    FROM input i
    JOIN functions f ON f.tenant_id = i.tenant_id AND f.namespace = i.namespace AND f.name = i.function_name
                    AND (i.function_id IS NULL OR f.id = i.function_id)
), jobs AS (
    INSERT INTO async_invocations (id, tenant_id, namespace, function_id, function_name, qualifier, payload,
                                   max_attempts, backoff_base_ms, backoff_max_ms, max_age_s, depth, source, caller,
                                   traceparent, tracestate, idempotency_key, queued_at, next_run_at)
    SELECT id, tenant_id, namespace, known_id, function_name, qualifier, payload::json,
           coalesce(max_attempts, (policy ->> 'max_attempts')::int, %(default_attempts)s),
           coalesce(backoff_base_ms, (policy ->> 'backoff_base_ms')::int, %(default_base)s),
           coalesce(backoff_max_ms, (policy ->> 'backoff_max_ms')::int, %(default_max)s),
           coalesce(max_age_s, (policy ->> 'max_age_s')::int, %(default_age)s),
           depth, source, caller, traceparent, tracestate, idempotency_key, due, due
    FROM known
), queue AS (
    INSERT INTO work (id, kind, tenant_id, namespace, subject, run_at)
    SELECT id, 'async', tenant_id, namespace, id, CASE WHEN held THEN 'infinity' ELSE due END FROM known
)
SELECT id::text AS id FROM known

-- name: take_keys -- in one order, so that two batches cannot wait for each other. An expired key is free again.
INSERT INTO idempotency_keys AS k (tenant_id, namespace, realm, key, request_hash, state, subject, expires_at)
SELECT tenant_id, namespace, realm, key, request_hash, 'done', subject, now() + make_interval(secs => ttl_s)
FROM unnest(%(tenants)s::text[], %(namespaces)s::text[], %(realms)s::text[], %(keys)s::text[], %(hashes)b::bytea[],
            %(subjects)s::uuid[], %(ttls)s::int[])
     AS i (tenant_id, namespace, realm, key, request_hash, subject, ttl_s)
ORDER BY 1, 2, 3, 4
ON CONFLICT (tenant_id, namespace, realm, key) DO UPDATE
    SET request_hash = excluded.request_hash, subject = excluded.subject, expires_at = excluded.expires_at,
        created_at = now(), attempt = 1
    WHERE k.expires_at <= now()
RETURNING subject::text AS subject

-- name: held_keys
SELECT i.no, k.subject::text AS id, k.request_hash = i.request_hash AS same,
       CASE WHEN a.status = 'queued' AND w.lease_until > now() THEN 'running' ELSE a.status END AS status
FROM unnest(%(nos)s::int[], %(tenants)s::text[], %(namespaces)s::text[], %(realms)s::text[], %(keys)s::text[],
            %(hashes)b::bytea[]) AS i (no, tenant_id, namespace, realm, key, request_hash)
JOIN idempotency_keys k USING (tenant_id, namespace, realm, key)
JOIN async_invocations a ON a.id = k.subject
LEFT JOIN work w ON w.id = a.id

-- name: drop_keys
DELETE FROM idempotency_keys WHERE subject = ANY (%(subjects)s::uuid[]) AND state = 'done'
  AND (tenant_id, namespace, realm, key) IN (
      SELECT * FROM unnest(%(tenants)s::text[], %(namespaces)s::text[], %(realms)s::text[], %(keys)s::text[]))

-- name: delete -- finished jobs only, with the keys they hold
WITH gone AS (
    DELETE FROM async_invocations
    WHERE id = ANY (%(ids)s::uuid[]) AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND status <> 'queued'
    RETURNING id, tenant_id, namespace, 'async/' || function_name AS realm, idempotency_key
), keys AS (
    DELETE FROM idempotency_keys k USING gone g
    WHERE k.tenant_id = g.tenant_id AND k.namespace = g.namespace AND k.realm = g.realm AND k.key = g.idempotency_key
      AND k.subject = g.id
)
SELECT count(*) AS deleted FROM gone
