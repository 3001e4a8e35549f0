-- Asynchronous invocations: what producers write and what readers and operators ask for. The consumer's side is jobs.sql.

-- name: add -- all of it, or nothing for a job whose function is not there. Those that may be taken are leased to their taker at
-- once, as by a claim, if nothing holds them back: no pause, no place, no pace. What is asked of a function is asked once.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest(
        %(ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[], %(functions)b::text[], %(function_ids)b::uuid[],
        %(qualifiers)b::text[], %(payloads)b::text[], %(max_attempts)b::int[], %(backoff_bases)b::int[],
        %(backoff_maxes)b::int[], %(max_ages)b::int[], %(delays)b::float8[], %(depths)b::int[], %(sources)b::text[],
        %(callers)b::text[], %(traceparents)b::text[], %(tracestates)b::text[], %(keys)b::text[], %(priorities)b::int[],
        %(concurrency_keys)b::text[], %(concurrency_limits)b::int[], %(callbacks)b::text[], %(keeps)b::int[],
        %(takes)b::int[]
    ) AS i (id, tenant_id, namespace, function_name, function_id, qualifier, payload, max_attempts, backoff_base_ms,
            backoff_max_ms, max_age_s, delay_s, depth, source, caller, traceparent, tracestate, idempotency_key, priority,
            concurrency_key, concurrency_limit, callback_url, keep_s, take)
), called AS MATERIALIZED (
    SELECT f.tenant_id, f.namespace, f.name AS function_name, f.id AS known_id, p.policy, p.destinations, p.held,
           NOT p.held AND (p.policy ->> 'max_inflight') IS NULL AND (p.policy ->> 'rate_limit_per_s') IS NULL
           AND t.status = 'active' AND NOT EXISTS (SELECT FROM async_gate WHERE paused) AS open
    FROM (SELECT DISTINCT tenant_id, namespace, function_name FROM input) i
    JOIN functions f ON f.tenant_id = i.tenant_id AND f.namespace = i.namespace AND f.name = i.function_name
    JOIN tenants t ON t.id = f.tenant_id,
    LATERAL (SELECT f.data #> '{recorded,async_policy}' AS policy,
                    nullif(jsonb_strip_nulls(f.data #> '{recorded,async_destinations}'), '{}') AS destinations,
                    EXISTS (SELECT FROM async_pauses p WHERE p.tenant_id = f.tenant_id AND p.namespace = f.namespace
                                                         AND p.function_id = f.id) AS held
             OFFSET 0) p
), known AS MATERIALIZED (
    SELECT i.id, i.tenant_id, i.namespace, c.known_id, i.function_name, i.qualifier, i.payload, i.depth, i.source, i.caller,
           i.traceparent, i.tracestate, i.idempotency_key, i.priority, i.concurrency_key, i.concurrency_limit,
           i.callback_url, i.keep_s, c.destinations, c.held, i.take = 1 AND c.open AS taken,
           coalesce(i.max_attempts, (c.policy ->> 'max_attempts')::int, %(default_attempts)s) AS max_attempts,
           coalesce(i.backoff_base_ms, (c.policy ->> 'backoff_base_ms')::int, %(default_base)s) AS backoff_base_ms,
           coalesce(i.backoff_max_ms, (c.policy ->> 'backoff_max_ms')::int, %(default_max)s) AS backoff_max_ms,
           coalesce(i.max_age_s, (c.policy ->> 'max_age_s')::int, %(default_age)s) AS max_age_s,
           now() + make_interval(secs => i.delay_s) AS due
    FROM input i JOIN called c USING (tenant_id, namespace, function_name)
    WHERE i.function_id IS NULL OR c.known_id = i.function_id
), jobs AS (
    INSERT INTO async_invocations (id, tenant_id, namespace, function_id, function_name, qualifier, payload,
                                   max_attempts, backoff_base_ms, backoff_max_ms, max_age_s, depth, source, caller,
                                   traceparent, tracestate, idempotency_key, queued_at, next_run_at, priority,
                                   concurrency_key, concurrency_limit, callback_url, keep_s)
    SELECT id, tenant_id, namespace, known_id, function_name, qualifier, payload::json, max_attempts, backoff_base_ms,
           backoff_max_ms, max_age_s, depth, source, caller, traceparent, tracestate, idempotency_key, due, due, priority,
           concurrency_key, concurrency_limit, callback_url, keep_s
    FROM known
), queue AS (
    INSERT INTO work (id, kind, tenant_id, namespace, subject, run_at, priority, owner, fence, attempt, claimed_at,
                      lease_until)
    SELECT id, 'async', tenant_id, namespace, id, CASE WHEN held THEN 'infinity' ELSE due END, priority,
           CASE WHEN taken THEN %(owner)s END, taken::int, taken::int, CASE WHEN taken THEN now() END,
           CASE WHEN taken THEN now() + make_interval(secs => %(lease_s)s) END
    FROM known
)
SELECT id::text AS id, taken, known_id::text AS function_id, max_attempts, backoff_base_ms, backoff_max_ms, max_age_s,
       CASE WHEN taken THEN destinations END AS destinations, now() AS created_at
FROM known

-- name: take_keys -- in one order, so that two batches cannot wait for each other. An expired key is free again.
INSERT INTO idempotency_keys AS k (tenant_id, namespace, realm, key, request_hash, state, subject, expires_at)
SELECT tenant_id, namespace, realm, key, request_hash, 'done', subject, now() + make_interval(secs => ttl_s)
FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(realms)b::text[], %(keys)b::text[], %(hashes)b::bytea[],
            %(subjects)b::uuid[], %(ttls)b::int[])
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
FROM unnest(%(nos)b::int[], %(tenants)b::text[], %(namespaces)b::text[], %(realms)b::text[], %(keys)b::text[],
            %(hashes)b::bytea[]) AS i (no, tenant_id, namespace, realm, key, request_hash)
JOIN idempotency_keys k USING (tenant_id, namespace, realm, key)
JOIN async_invocations a ON a.id = k.subject
LEFT JOIN work w ON w.id = a.id

-- name: drop_keys
DELETE FROM idempotency_keys WHERE subject = ANY (%(subjects)b::uuid[]) AND state = 'done'
  AND (tenant_id, namespace, realm, key) IN (
      SELECT * FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(realms)b::text[], %(keys)b::text[]))

-- name: delete -- finished jobs only, with the keys they hold
WITH gone AS (
    DELETE FROM async_invocations
    WHERE id = ANY (%(ids)b::uuid[]) AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND status <> 'queued'
    RETURNING id, tenant_id, namespace, 'async/' || function_name AS realm, idempotency_key
), keys AS (
    DELETE FROM idempotency_keys k USING gone g
    WHERE k.tenant_id = g.tenant_id AND k.namespace = g.namespace AND k.realm = g.realm AND k.key = g.idempotency_key
      AND k.subject = g.id
)
SELECT count(*) AS deleted FROM gone

-- name: page
SELECT a.id::text AS id, a.function_id::text AS function_id, a.function_name, a.qualifier,
       CASE WHEN a.status = 'queued' AND w.lease_until > now() THEN 'running' ELSE a.status END AS status,
       a.paused, coalesce(w.attempt, a.attempt) AS attempt, a.max_attempts, a.backoff_base_ms, a.backoff_max_ms,
       a.max_age_s, a.priority, a.concurrency_key, a.source, a.caller, a.traceparent, a.idempotency_key, a.error,
       a.request_id::text AS request_id, a.version, a.created_at, coalesce(a.started_at, w.claimed_at) AS started_at, a.finished_at,
       CASE WHEN a.status = 'queued' AND (w.lease_until IS NULL OR w.lease_until <= now()) THEN a.next_run_at END
           AS next_run_at
FROM async_invocations a LEFT JOIN work w ON w.id = a.id
WHERE a.tenant_id = %(tenant)s AND a.namespace = %(namespace)s
  AND (%(function)s::text IS NULL OR a.function_name = %(function)s)
  AND (%(before)s::uuid IS NULL OR a.id < %(before)s::uuid)
  AND (%(since)s::timestamptz IS NULL OR a.created_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR a.created_at < %(until)s)
  AND (%(statuses)s::text[] IS NULL OR
       CASE WHEN a.status = 'queued' AND w.lease_until > now() THEN 'running' ELSE a.status END = ANY (%(statuses)s))
ORDER BY a.id DESC LIMIT %(limit)s

-- name: page_dlq -- as page, through the index of dead letters
SELECT a.id::text AS id, a.function_id::text AS function_id, a.function_name, a.qualifier, a.status, a.paused,
       a.attempt, a.max_attempts, a.backoff_base_ms, a.backoff_max_ms, a.max_age_s, a.priority,
       a.concurrency_key, a.source, a.caller, a.traceparent,
       a.idempotency_key, a.error, a.request_id::text AS request_id, a.version, a.created_at, a.started_at,
       a.finished_at, NULL::timestamptz AS next_run_at
FROM async_invocations a
WHERE a.status = 'dlq' AND a.error IS NOT NULL AND a.tenant_id = %(tenant)s AND a.namespace = %(namespace)s
  AND (%(function)s::text IS NULL OR a.function_name = %(function)s)
  AND (%(before)s::uuid IS NULL OR a.id < %(before)s::uuid)
  AND (%(since)s::timestamptz IS NULL OR a.created_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR a.created_at < %(until)s)
ORDER BY a.id DESC LIMIT %(limit)s

-- name: get
SELECT a.id::text AS id, a.function_id::text AS function_id, a.function_name, a.qualifier,
       CASE WHEN a.status = 'queued' AND w.lease_until > now() THEN 'running' ELSE a.status END AS status,
       a.paused, coalesce(w.attempt, a.attempt) AS attempt, a.max_attempts, a.backoff_base_ms, a.backoff_max_ms,
       a.max_age_s, a.priority, a.concurrency_key, a.source, a.caller, a.traceparent, a.idempotency_key, a.error,
       a.request_id::text AS request_id, a.version, a.created_at, coalesce(a.started_at, w.claimed_at) AS started_at, a.finished_at,
       CASE WHEN a.status = 'queued' AND (w.lease_until IS NULL OR w.lease_until <= now()) THEN a.next_run_at END
           AS next_run_at,
       a.attempts, a.payload::text AS payload, a.output::text AS output
FROM async_invocations a LEFT JOIN work w ON w.id = a.id
WHERE a.id = %(id)s AND a.tenant_id = %(tenant)s AND a.namespace = %(namespace)s

-- name: retry -- by hand, from the beginning; its age begins anew
WITH again AS (
    UPDATE async_invocations a
    SET status = 'queued', paused = false, attempt = 0, generation = generation + 1,
        max_attempts = coalesce(%(max_attempts)s, max_attempts), output = NULL, error = NULL, request_id = NULL,
        version = NULL, queued_at = now(), next_run_at = now(), finished_at = NULL, keep_until = NULL
    WHERE id = ANY (%(ids)b::uuid[]) AND tenant_id = %(tenant)s AND namespace = %(namespace)s
      AND status IN ('dlq', 'cancelled')
    RETURNING id, tenant_id, namespace, function_id, priority
)
INSERT INTO work (id, kind, tenant_id, namespace, subject, priority, run_at)
SELECT id, 'async', tenant_id, namespace, id, priority,
       CASE WHEN EXISTS (SELECT FROM async_pauses p WHERE p.tenant_id = a.tenant_id AND p.namespace = a.namespace
                                                      AND p.function_id = a.function_id)
            THEN 'infinity' ELSE now() END
FROM again a

-- name: cancel -- what is queued or runs
WITH gone AS (
    DELETE FROM work
    WHERE kind = 'async' AND id = ANY (%(ids)b::uuid[]) AND tenant_id = %(tenant)s AND namespace = %(namespace)s
    RETURNING id, attempt
)
UPDATE async_invocations a SET status = 'cancelled', paused = false, attempt = g.attempt, finished_at = now(),
                               keep_until = now() + make_interval(secs => a.keep_s)
FROM gone g WHERE a.id = g.id
RETURNING a.id::text AS id

-- name: pause
WITH held AS (
    UPDATE async_invocations SET paused = true
    WHERE id = %(id)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND status = 'queued'
    RETURNING id
), parked AS (
    UPDATE work w SET run_at = 'infinity' FROM held h
    WHERE w.id = h.id AND (w.lease_until IS NULL OR w.lease_until <= now())
)
SELECT id FROM held

-- name: resume
WITH freed AS (
    UPDATE async_invocations SET paused = false
    WHERE id = %(id)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND status = 'queued'
    RETURNING id, tenant_id, namespace, function_id, next_run_at
), due AS (
    UPDATE work w SET run_at = f.next_run_at FROM freed f
    WHERE w.id = f.id AND w.run_at = 'infinity'
      AND NOT EXISTS (SELECT FROM async_pauses p WHERE p.tenant_id = f.tenant_id AND p.namespace = f.namespace
                                                   AND p.function_id = f.function_id)
)
SELECT id FROM freed

-- name: pause_function
INSERT INTO async_pauses (tenant_id, namespace, function_id, paused_by)
SELECT tenant_id, namespace, id, %(by)s FROM functions
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(function)s
ON CONFLICT DO NOTHING

-- name: park -- what waits; what runs ends, and waits when it has to be tried again
UPDATE work w SET run_at = 'infinity'
FROM async_invocations a, functions f
WHERE w.kind = 'async' AND w.tenant_id = %(tenant)s AND w.namespace = %(namespace)s AND w.run_at < 'infinity'
  AND (w.lease_until IS NULL OR w.lease_until <= now())
  AND a.id = w.id AND f.id = a.function_id AND f.name = %(function)s

-- name: resume_function
DELETE FROM async_pauses p USING functions f
WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name = %(function)s
  AND p.tenant_id = f.tenant_id AND p.namespace = f.namespace AND p.function_id = f.id

-- name: unpark
UPDATE work w SET run_at = a.next_run_at
FROM async_invocations a, functions f
WHERE w.kind = 'async' AND w.tenant_id = %(tenant)s AND w.namespace = %(namespace)s AND w.run_at = 'infinity'
  AND a.id = w.id AND NOT a.paused AND f.id = a.function_id AND f.name = %(function)s

-- name: unpark_stray -- a job that was put back in the moment in which its function was resumed
UPDATE work SET run_at = now() WHERE id IN (
    SELECT w.id FROM work w JOIN async_invocations a ON a.id = w.id
    WHERE w.kind = 'async' AND w.run_at = 'infinity' AND NOT a.paused
      AND NOT EXISTS (SELECT FROM async_pauses p WHERE p.tenant_id = a.tenant_id AND p.namespace = a.namespace
                                                   AND p.function_id = a.function_id)
      AND NOT EXISTS (SELECT FROM async_places p WHERE p.job_id = w.id AND p.state = 'waiting')
    LIMIT %(limit)s FOR UPDATE OF w SKIP LOCKED)

-- name: forget_rates
DELETE FROM async_rates WHERE bucket < now() - interval '10 minutes'

-- name: function_paused
SELECT EXISTS (SELECT FROM async_pauses p WHERE p.function_id = f.id AND p.tenant_id = f.tenant_id
                                            AND p.namespace = f.namespace) AS paused
FROM functions f WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name = %(function)s

-- name: gate
SELECT paused, reason, changed_by, changed_at FROM async_gate

-- name: set_gate
UPDATE async_gate SET paused = %(paused)s, reason = %(reason)s, changed_by = %(by)s, changed_at = now()

-- name: matching_dead -- dead letters for retry-all and purge
SELECT id::text AS id FROM async_invocations
WHERE status = 'dlq' AND error IS NOT NULL AND tenant_id = %(tenant)s AND namespace = %(namespace)s
  AND (%(functions)s::text[] IS NULL OR function_name = ANY (%(functions)s))
  AND (%(since)s::timestamptz IS NULL OR finished_at >= %(since)s)
  AND finished_at <= coalesce(%(until)s::timestamptz, now())
  AND (%(error_contains)s::text IS NULL OR strpos(error ->> 'message', %(error_contains)s) > 0
       OR strpos(error ->> 'type', %(error_contains)s) > 0)
ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: count_dead
SELECT count(*) AS total, now() AS moment FROM async_invocations
WHERE status = 'dlq' AND error IS NOT NULL AND tenant_id = %(tenant)s AND namespace = %(namespace)s
  AND (%(functions)s::text[] IS NULL OR function_name = ANY (%(functions)s))
  AND (%(since)s::timestamptz IS NULL OR finished_at >= %(since)s)
  AND finished_at <= coalesce(%(until)s::timestamptz, now())
  AND (%(error_contains)s::text IS NULL OR strpos(error ->> 'message', %(error_contains)s) > 0
       OR strpos(error ->> 'type', %(error_contains)s) > 0)

-- name: matching -- jobs for cancel-all and retry-all, those with the smallest ids after one
SELECT id::text AS id, status FROM async_invocations
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND status = ANY (%(statuses)b::text[])
  AND id > %(after)s::uuid
  AND (%(functions)s::text[] IS NULL OR function_name = ANY (%(functions)s))
  AND (%(concurrency_key)s::text IS NULL OR concurrency_key = %(concurrency_key)s)
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
  AND created_at <= coalesce(%(until)s::timestamptz, now())
ORDER BY id LIMIT %(limit)s

-- name: functions_with -- jobs of these states
SELECT DISTINCT function_name AS name FROM async_invocations
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND status = ANY (%(statuses)b::text[])

-- name: debounce_turn -- one at a time for each key, also while there is no row to lock
SELECT pg_advisory_xact_lock(hashtextextended(%(realm)s, 1))

-- name: debounced -- the job that holds the key
SELECT d.job_id::text AS job_id FROM async_debounces d JOIN functions f ON f.id = d.function_id
WHERE d.tenant_id = %(tenant)s AND d.namespace = %(namespace)s AND f.name = %(function)s AND d.key = %(key)s

-- name: put_off -- a job that nobody has taken yet
UPDATE work w
SET run_at = CASE WHEN w.run_at = 'infinity' THEN w.run_at ELSE least(
        now() + make_interval(secs => %(delay_s)s), d.began_at + make_interval(secs => %(most_s)s)) END
FROM async_debounces d
WHERE w.id = %(id)s AND w.fence = 0 AND d.job_id = w.id
RETURNING w.id

-- name: change -- to what the newest request says
UPDATE async_invocations a
SET payload = %(payload)s::json, qualifier = %(qualifier)s, caller = %(caller)s, traceparent = %(traceparent)s,
    tracestate = %(tracestate)s, callback_url = %(callback)s, keep_s = %(keep_s)s,
    queued_at = CASE WHEN w.run_at = 'infinity' THEN a.queued_at ELSE w.run_at END,
    next_run_at = CASE WHEN w.run_at = 'infinity' THEN a.next_run_at ELSE w.run_at END
FROM work w WHERE a.id = %(id)s AND w.id = a.id

-- name: hold_debounce -- the key is this job's from now on
INSERT INTO async_debounces (tenant_id, namespace, function_id, key, job_id)
SELECT a.tenant_id, a.namespace, a.function_id, %(key)s, a.id FROM async_invocations a WHERE a.id = %(id)s
ON CONFLICT (tenant_id, namespace, function_id, key) DO UPDATE SET job_id = excluded.job_id, began_at = now()

-- name: functions_with_dead
SELECT DISTINCT function_name AS name FROM async_invocations
WHERE status = 'dlq' AND error IS NOT NULL AND tenant_id = %(tenant)s AND namespace = %(namespace)s

-- name: counts
SELECT status, sum(jobs)::bigint AS jobs FROM async_counts
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s GROUP BY status

-- name: rates
SELECT coalesce(sum(enqueued) FILTER (WHERE bucket >= now() - interval '1 minute'), 0)::bigint AS enqueued_1m,
       coalesce(sum(finished) FILTER (WHERE bucket >= now() - interval '1 minute'), 0)::bigint AS finished_1m,
       coalesce(sum(enqueued), 0)::bigint AS enqueued_5m, coalesce(sum(finished), 0)::bigint AS finished_5m
FROM async_rates
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND bucket >= now() - interval '5 minutes'

-- name: backlog
SELECT count(*) FILTER (WHERE lease_until > now()) AS running,
       count(*) FILTER (WHERE run_at = 'infinity') AS held,
       extract(epoch FROM now() - min(run_at) FILTER (WHERE run_at <= now() AND (lease_until IS NULL
                                                                               OR lease_until <= now())))::float8
           AS oldest_s
FROM work WHERE kind = 'async' AND tenant_id = %(tenant)s AND namespace = %(namespace)s

-- name: totals -- for the metrics: every tenant's numbers
SELECT tenant_id AS tenant, status, sum(jobs)::bigint AS jobs FROM async_counts GROUP BY 1, 2

-- name: delete_of_function -- every job, whatever its state, with its place in the queue and its key
WITH gone AS (
    DELETE FROM async_invocations
    WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_name = %(function)s
      AND function_id = %(function_id)s
    RETURNING id, tenant_id, namespace, 'async/' || function_name AS realm, idempotency_key
), keys AS (
    DELETE FROM idempotency_keys k USING gone g
    WHERE k.tenant_id = g.tenant_id AND k.namespace = g.namespace AND k.realm = g.realm AND k.key = g.idempotency_key
      AND k.subject = g.id
)
DELETE FROM work w USING gone g WHERE w.id = g.id AND w.kind = 'async'
