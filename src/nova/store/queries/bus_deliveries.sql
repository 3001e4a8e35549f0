-- Deliveries: what became of each message of a subscription.

-- name: record -- outcomes of one moment, each only while its duty is ours. A row that has ended is not written again. The lock
-- keeps a subscription from being deleted before its rows are there to be deleted with it.
WITH ours AS (
    SELECT l.duty FROM leases l JOIN unnest(%(duties)s::text[], %(fences)s::bigint[]) AS f (duty, fence)
        ON l.duty = f.duty AND l.fence = f.fence
     WHERE l.owner = %(owner)s
       FOR KEY SHARE OF l
), alive AS (
    SELECT id, tenant_id, namespace, topic_id FROM event_subscriptions WHERE id = ANY (%(touched)s::uuid[])
       FOR KEY SHARE
), written AS (
    INSERT INTO event_deliveries AS d
           (subscription_id, sequence, generation, tenant_id, namespace, topic_id, status, attempts, replay, ordering_key,
            next_run_at, started_at, duration_ms, request_id, error, history, ended_at)
    SELECT n.subscription_id, n.sequence, n.generation, a.tenant_id, a.namespace, a.topic_id, n.status, n.attempts, n.replay,
           n.ordering_key, CASE WHEN n.status = 'queued' THEN now() + make_interval(secs => n.delay_s) END,
           n.started_at, n.duration_ms, n.request_id, n.error, n.failed,
           CASE WHEN n.status <> 'queued' THEN now() END
      FROM unnest(%(item_duties)s::text[], %(subscriptions)s::uuid[], %(sequences)s::bigint[], %(generations)s::int[],
                  %(statuses)s::text[], %(attempts)s::int[], %(replays)s::boolean[], %(keys)s::text[], %(delays)s::float8[],
                  %(started)s::timestamptz[], %(durations)s::real[], %(requests)s::text[], %(errors)s::text[],
                  %(failed)s::jsonb[])
           AS n (duty, subscription_id, sequence, generation, status, attempts, replay, ordering_key, delay_s, started_at,
                 duration_ms, request_id, error, failed)
      JOIN ours ON ours.duty = n.duty
      JOIN alive a ON a.id = n.subscription_id
    ON CONFLICT (subscription_id, sequence, generation) DO UPDATE
       SET status = excluded.status, attempts = excluded.attempts, next_run_at = excluded.next_run_at,
           started_at = coalesce(excluded.started_at, d.started_at),
           duration_ms = coalesce(excluded.duration_ms, d.duration_ms),
           request_id = coalesce(excluded.request_id, d.request_id), error = excluded.error,
           history = CASE WHEN excluded.history IS NULL THEN d.history
                          ELSE coalesce(d.history, '[]'::jsonb) || excluded.history END,
           ended_at = excluded.ended_at
     WHERE d.status = 'queued'
)
SELECT duty FROM ours;

-- name: advance -- not in the statement above: a row that it changes cannot be locked by it
WITH ours AS (
    SELECT l.duty FROM leases l JOIN unnest(%(duties)s::text[], %(fences)s::bigint[]) AS f (duty, fence)
        ON l.duty = f.duty AND l.fence = f.fence
     WHERE l.owner = %(owner)s
       FOR KEY SHARE OF l
), moved AS (
    UPDATE event_subscriptions s SET cursor = greatest(s.cursor, c.cursor), expired = s.expired + c.expired
      FROM unnest(%(cursor_duties)s::text[], %(ids)s::uuid[], %(generations)s::int[], %(cursors)s::bigint[],
                  %(expired)s::bigint[]) AS c (duty, id, generation, cursor, expired)
      JOIN ours ON ours.duty = c.duty
     WHERE s.id = c.id AND s.generation = c.generation
)
SELECT duty FROM ours;

-- name: queued -- everything that waits, in order
SELECT sequence, generation, attempts, replay, ordering_key,
       extract(epoch FROM next_run_at - now())::float8 AS due_s
  FROM event_deliveries
 WHERE subscription_id = %(id)s::uuid AND status = 'queued'
 ORDER BY sequence, generation
 LIMIT %(limit)s;

-- name: blocked -- what is dead and has an ordering key
SELECT DISTINCT ordering_key FROM event_deliveries
 WHERE subscription_id = %(id)s::uuid AND status = 'dlq' AND ordering_key IS NOT NULL;

-- name: ahead -- messages that were done before those below them
SELECT sequence FROM event_deliveries
 WHERE subscription_id = %(id)s::uuid AND generation = %(generation)s AND sequence > %(cursor)s
 LIMIT %(limit)s;

-- name: last_of
SELECT max(sequence) AS last FROM event_deliveries WHERE subscription_id = %(id)s::uuid;

-- name: count_queued
SELECT count(*) AS rows FROM event_deliveries WHERE subscription_id = %(id)s::uuid AND status = 'queued';

-- name: add -- for a replay: delivered again, one after the other
INSERT INTO event_deliveries (subscription_id, sequence, generation, tenant_id, namespace, topic_id, status, attempts, replay,
                              ordering_key, next_run_at)
SELECT %(id)s::uuid, n.sequence, %(generation)s, s.tenant_id, s.namespace, s.topic_id, 'queued', 0, true, n.key, now()
  FROM unnest(%(sequences)s::bigint[], %(keys)s::text[]) AS n (sequence, key), event_subscriptions s
 WHERE s.id = %(id)s::uuid
ON CONFLICT DO NOTHING;

-- name: page
SELECT d.*, t.name AS topic FROM event_deliveries d JOIN event_topics t ON t.id = d.topic_id
 WHERE d.subscription_id = %(id)s::uuid AND (%(status)s::text IS NULL OR d.status = %(status)s)
   AND (%(sequence)s::bigint IS NULL OR (d.sequence, d.generation) < (%(sequence)s::bigint, %(generation)s::int))
 ORDER BY d.sequence DESC, d.generation DESC
 LIMIT %(limit)s;

-- name: get
SELECT d.*, t.name AS topic FROM event_deliveries d JOIN event_topics t ON t.id = d.topic_id
 WHERE d.subscription_id = %(id)s::uuid AND d.sequence = %(sequence)s AND d.generation = %(generation)s
   AND d.tenant_id = %(tenant)s AND d.namespace = %(namespace)s;

-- name: dead -- newest first
SELECT d.*, t.name AS topic FROM event_deliveries d JOIN event_topics t ON t.id = d.topic_id
 WHERE d.topic_id = %(topic_id)s::uuid AND d.status = 'dlq'
   AND (%(before)s::timestamptz IS NULL
        OR (d.ended_at, d.subscription_id, d.sequence, d.generation)
           < (%(before)s::timestamptz, %(id)s::uuid, %(sequence)s::bigint, %(generation)s::int))
 ORDER BY d.ended_at DESC, d.subscription_id DESC, d.sequence DESC, d.generation DESC
 LIMIT %(limit)s;

-- name: retry -- what waits for its time, or is dead
UPDATE event_deliveries
   SET status = 'queued', attempts = CASE WHEN status = 'dlq' THEN 0 ELSE attempts END, next_run_at = now(), ended_at = NULL
 WHERE subscription_id = %(id)s::uuid AND sequence = %(sequence)s AND generation = %(generation)s
   AND status IN ('queued', 'dlq');

-- name: skip
UPDATE event_deliveries SET status = 'skipped', next_run_at = NULL, ended_at = now()
 WHERE subscription_id = %(id)s::uuid AND sequence = %(sequence)s AND generation = %(generation)s
   AND status IN ('queued', 'dlq');

-- name: retry_dead
UPDATE event_deliveries SET status = 'queued', attempts = 0, next_run_at = now(), ended_at = NULL
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM event_deliveries WHERE subscription_id = %(id)s::uuid AND status = 'dlq'
                          ORDER BY sequence LIMIT %(limit)s FOR UPDATE));

-- name: purge_dead
DELETE FROM event_deliveries
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM event_deliveries WHERE subscription_id = %(id)s::uuid AND status = 'dlq'
                          ORDER BY sequence LIMIT %(limit)s FOR UPDATE));

-- name: delete_old -- before when what is well goes, and before when what is dead
DELETE FROM event_deliveries WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM event_deliveries
     WHERE ended_at < %(before)s AND (status <> 'dlq' OR ended_at < %(dead_before)s)
     ORDER BY ended_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED));
