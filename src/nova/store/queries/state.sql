-- What functions keep. A key whose time is up is not there, whether or not its row has gone.

-- name: get
SELECT key, value, version, expires_at, created_at, updated_at FROM function_state
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function)s AND key = %(key)s
   AND (expires_at IS NULL OR expires_at > now());

-- name: list -- `until` is after every key with the prefix
SELECT key, size - octet_length(key) AS size, version, expires_at, created_at, updated_at FROM function_state
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function)s
   AND key >= %(prefix)s AND key > %(after)s AND (%(until)s::text IS NULL OR key < %(until)s::text COLLATE "C")
   AND starts_with(key, %(prefix)s)
   AND (expires_at IS NULL OR expires_at > now())
 ORDER BY key
 LIMIT %(limit)s;

-- name: put
INSERT INTO function_state AS s (tenant_id, namespace, function_id, key, value, size, version, expires_at)
VALUES (%(tenant)s, %(namespace)s, %(function)s, %(key)s, %(value)s, %(size)s, 1, now() + %(ttl_s)s * interval '1 s')
ON CONFLICT (tenant_id, namespace, function_id, key) DO UPDATE
   SET value = EXCLUDED.value, size = EXCLUDED.size, version = s.version + 1, expires_at = EXCLUDED.expires_at,
       created_at = CASE WHEN s.expires_at <= now() THEN now() ELSE s.created_at END, updated_at = now()
RETURNING key, value, version, expires_at, created_at, updated_at;

-- name: create -- nothing when the key is there
INSERT INTO function_state AS s (tenant_id, namespace, function_id, key, value, size, version, expires_at)
VALUES (%(tenant)s, %(namespace)s, %(function)s, %(key)s, %(value)s, %(size)s, 1, now() + %(ttl_s)s * interval '1 s')
ON CONFLICT (tenant_id, namespace, function_id, key) DO UPDATE
   SET value = EXCLUDED.value, size = EXCLUDED.size, version = s.version + 1, expires_at = EXCLUDED.expires_at,
       created_at = now(), updated_at = now()
 WHERE s.expires_at <= now()
RETURNING key, value, version, expires_at, created_at, updated_at;

-- name: replace -- nothing when the key has another version
UPDATE function_state
   SET value = %(value)s, size = %(size)s, version = version + 1, expires_at = now() + %(ttl_s)s * interval '1 s',
       updated_at = now()
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function)s AND key = %(key)s
   AND version = %(expected)s AND (expires_at IS NULL OR expires_at > now())
RETURNING key, value, version, expires_at, created_at, updated_at;

-- name: increment -- the caller checks that the sum is a number it can keep
INSERT INTO function_state AS s (tenant_id, namespace, function_id, key, value, size, version, expires_at)
VALUES (%(tenant)s, %(namespace)s, %(function)s, %(key)s, %(by)s::bigint::text,
        octet_length(%(key)s) + octet_length(%(by)s::bigint::text), 1, now() + %(ttl_s)s * interval '1 s')
ON CONFLICT (tenant_id, namespace, function_id, key) DO UPDATE
   SET value = CASE WHEN s.expires_at <= now() THEN EXCLUDED.value ELSE (s.value::numeric + %(by)s)::text END,
       size = octet_length(s.key)
            + octet_length(CASE WHEN s.expires_at <= now() THEN EXCLUDED.value ELSE (s.value::numeric + %(by)s)::text END),
       version = s.version + 1,
       expires_at = coalesce(EXCLUDED.expires_at, CASE WHEN s.expires_at <= now() THEN NULL ELSE s.expires_at END),
       created_at = CASE WHEN s.expires_at <= now() THEN now() ELSE s.created_at END, updated_at = now()
 WHERE s.expires_at <= now()
    OR CASE WHEN s.value ~ '^-?[0-9]{1,18}$' THEN abs(s.value::numeric + %(by)s) <= 9007199254740991 ELSE false END
RETURNING key, value, version, expires_at, created_at, updated_at;

-- name: delete
DELETE FROM function_state
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function)s AND key = %(key)s
   AND (%(expected)s::bigint IS NULL OR version = %(expected)s) AND (expires_at IS NULL OR expires_at > now());

-- name: delete_prefix
DELETE FROM function_state
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function)s
   AND key >= %(prefix)s AND (%(until)s::text IS NULL OR key < %(until)s::text COLLATE "C") AND starts_with(key, %(prefix)s);

-- name: usage
SELECT coalesce(sum(size), 0)::bigint AS bytes FROM function_state WHERE function_id = %(function)s;

-- name: sweep
DELETE FROM function_state WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM function_state WHERE expires_at < %(before)s ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED));
