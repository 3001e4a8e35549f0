-- Places and paces of asynchronous calls. Whoever decides about a function's jobs holds its row of async_paces.

-- name: know
INSERT INTO async_paces (tenant_id, namespace, function_id)
SELECT f.tenant_id, f.namespace, f.id FROM functions f WHERE f.id = ANY (%(functions)b::uuid[])
ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING

-- name: lock -- in one order, so that two cannot wait for each other; with what the functions' policies say now
SELECT p.tenant_id, p.namespace, p.function_id::text AS function_id,
       extract(epoch FROM greatest(p.next_at, now() - interval '1 hour') - now())::float8 AS next_s,
       (f.data #>> '{recorded,async_policy,max_inflight}')::int AS max_inflight
FROM async_paces p JOIN functions f ON f.id = p.function_id
WHERE p.function_id = ANY (%(functions)b::uuid[])
ORDER BY 1, 2, 3 FOR UPDATE OF p

-- name: held
SELECT p.function_id::text AS function_id, p.key, count(*)::int AS held
FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(functions)b::uuid[]) AS g (tenant_id, namespace, function_id)
JOIN async_places p USING (tenant_id, namespace, function_id)
WHERE p.state = 'holding' GROUP BY 1, 2

-- name: awaited -- keys of these for which somebody waits
SELECT DISTINCT g.function_id::text AS function_id, g.key
FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(functions)b::uuid[], %(keys)b::text[])
     AS g (tenant_id, namespace, function_id, key)
WHERE EXISTS (SELECT FROM async_places p WHERE p.tenant_id = g.tenant_id AND p.namespace = g.namespace
                                           AND p.function_id = g.function_id AND p.key = g.key AND p.state = 'waiting')

-- name: told
SELECT job_id::text AS id, state FROM async_places WHERE job_id = ANY (%(ids)b::uuid[])

-- name: place
INSERT INTO async_places AS p (job_id, tenant_id, namespace, function_id, key, key_limit, state, priority, due)
SELECT * FROM unnest(%(ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[], %(functions)b::uuid[],
                     %(keys)b::text[], %(key_limits)b::int[], %(states)b::text[], %(priorities)b::int[],
                     %(dues)b::timestamptz[])
ON CONFLICT (job_id) DO UPDATE SET state = excluded.state

-- name: park -- what may not run now; it was no attempt. NULL: until a place is free.
UPDATE work w
SET owner = NULL, lease_until = NULL, claimed_at = NULL, attempt = w.attempt - 1,
    run_at = CASE WHEN g.delay_s IS NULL THEN 'infinity' ELSE now() + make_interval(secs => g.delay_s) END
FROM unnest(%(ids)b::uuid[], %(fences)b::bigint[], %(delays)b::float8[]) AS g (id, fence, delay_s)
WHERE w.id = g.id AND w.fence = g.fence AND w.owner = %(owner)s

-- name: pace
UPDATE async_paces p SET next_at = now() + make_interval(secs => g.next_s)
FROM unnest(%(functions)b::uuid[], %(nexts)b::float8[]) AS g (function_id, next_s)
WHERE p.function_id = g.function_id

-- name: functions_of
SELECT DISTINCT function_id::text AS function_id FROM async_places WHERE job_id = ANY (%(ids)b::uuid[])

-- name: leave
DELETE FROM async_places WHERE job_id = ANY (%(ids)b::uuid[])

-- name: waiting -- the first in turn, but for those whose key is full
SELECT p.job_id::text AS id, p.key, p.key_limit FROM async_places p
WHERE p.tenant_id = %(tenant)s AND p.namespace = %(namespace)s AND p.function_id = %(function)s AND p.state = 'waiting'
  AND (p.key = '' OR p.key_limit > (SELECT count(*) FROM async_places h
                                    WHERE h.tenant_id = p.tenant_id AND h.namespace = p.namespace
                                      AND h.function_id = p.function_id AND h.key = p.key AND h.state = 'holding'))
ORDER BY p.priority, p.due, p.job_id LIMIT %(limit)s

-- name: promote
WITH chosen AS (
    UPDATE async_places SET state = 'holding' WHERE job_id = ANY (%(ids)b::uuid[]) RETURNING job_id
)
UPDATE work w SET run_at = now() FROM chosen c WHERE w.id = c.job_id AND w.run_at = 'infinity'

-- name: orphans -- of jobs that are no longer in the queue
DELETE FROM async_places WHERE job_id IN (
    SELECT p.job_id FROM async_places p WHERE NOT EXISTS (SELECT FROM work w WHERE w.id = p.job_id) LIMIT %(limit)s)

-- name: functions_that_wait
SELECT DISTINCT function_id::text AS function_id FROM async_places WHERE state = 'waiting' LIMIT %(limit)s
