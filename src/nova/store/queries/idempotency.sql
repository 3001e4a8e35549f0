-- Idempotency keys of requests that somebody waits for. Those of jobs are in asyncs.sql.

-- name: reserve -- a key that is new, has expired, or whose holder died is taken; the attempt tells which
INSERT INTO idempotency_keys AS k
    (tenant_id, namespace, realm, key, request_hash, state, subject, lease_until, expires_at)
VALUES (%(tenant)s, %(namespace)s, %(realm)s, %(key)s, %(hash)s, 'running', %(subject)s,
        now() + make_interval(secs => %(lease_s)s), now() + make_interval(secs => %(ttl_s)s))
ON CONFLICT (tenant_id, namespace, realm, key) DO UPDATE
    SET attempt = CASE WHEN k.expires_at <= now() THEN 1 ELSE k.attempt + 1 END,
        request_hash = excluded.request_hash, state = 'running', subject = excluded.subject, answer = NULL,
        lease_until = excluded.lease_until, expires_at = excluded.expires_at, created_at = now()
    WHERE k.expires_at <= now()
       OR (k.state = 'running' AND k.lease_until <= now() AND k.request_hash = excluded.request_hash)
RETURNING attempt

-- name: held
SELECT request_hash = %(hash)s AS same, state, answer::text AS answer,
       extract(epoch FROM lease_until - now())::float8 AS lease_s
FROM idempotency_keys
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND realm = %(realm)s AND key = %(key)s

-- name: renew
UPDATE idempotency_keys k SET lease_until = now() + make_interval(secs => %(lease_s)s)
FROM unnest(%(tenants)s::text[], %(namespaces)s::text[], %(realms)s::text[], %(keys)s::text[], %(subjects)s::uuid[])
     AS h (tenant_id, namespace, realm, key, subject)
WHERE k.tenant_id = h.tenant_id AND k.namespace = h.namespace AND k.realm = h.realm AND k.key = h.key
  AND k.subject = h.subject AND k.state = 'running'

-- name: answer
UPDATE idempotency_keys SET state = 'done', answer = %(answer)b::text::json, lease_until = NULL
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND realm = %(realm)s AND key = %(key)s
  AND subject = %(subject)s AND state = 'running'

-- name: release
DELETE FROM idempotency_keys
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND realm = %(realm)s AND key = %(key)s
  AND subject = %(subject)s AND state = 'running'

-- name: sweep
DELETE FROM idempotency_keys WHERE (tenant_id, namespace, realm, key) IN (
    SELECT tenant_id, namespace, realm, key FROM idempotency_keys WHERE expires_at <= now()
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
