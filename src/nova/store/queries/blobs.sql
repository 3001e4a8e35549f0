-- Content-addressed bytes. A put of known bytes renews created_at, so that a sweep never removes what is about to be used.

-- name: insert_many
INSERT INTO blobs (sha256, size, media_type)
SELECT digest, size, %(media_type)s FROM unnest(%(digests)s::text[], %(sizes)s::bigint[]) AS given (digest, size)
 ORDER BY digest
ON CONFLICT (sha256) DO UPDATE SET created_at = now()
RETURNING sha256 AS digest, (xmax = 0) AS fresh;

-- name: insert_chunk
INSERT INTO blob_chunks (sha256, seq, data) VALUES (%(digest)s, %(seq)s, %(data)s);

-- name: info
SELECT sha256 AS digest, size, media_type FROM blobs WHERE sha256 = %(digest)s;

-- name: chunks
SELECT data FROM blob_chunks WHERE sha256 = %(digest)s ORDER BY seq;

-- name: chunk
SELECT data FROM blob_chunks WHERE sha256 = %(digest)s AND seq = %(seq)s;

-- name: many
SELECT sha256 AS digest, data FROM blob_chunks WHERE sha256 = ANY(%(digests)s) ORDER BY sha256, seq;

-- name: sweep
DELETE FROM blobs b
 WHERE b.sha256 IN (
       SELECT o.sha256 FROM blobs o
        WHERE o.created_at < now() - make_interval(secs => %(age_s)s)
          AND NOT EXISTS (SELECT FROM function_files f WHERE f.digest = o.sha256)
          AND NOT EXISTS (SELECT FROM function_versions v WHERE v.artifact = o.sha256)
          AND NOT EXISTS (SELECT FROM build_cache c WHERE c.artifact = o.sha256)
          AND NOT EXISTS (SELECT FROM layer_versions l WHERE l.artifact = o.sha256)
        ORDER BY o.created_at
        LIMIT %(limit)s
          FOR UPDATE SKIP LOCKED);
