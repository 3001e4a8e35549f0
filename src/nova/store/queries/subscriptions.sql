-- Subscriptions: what they are, and how far they have come.

-- name: insert -- nothing when the name or the consumer group is taken
INSERT INTO event_subscriptions (id, tenant_id, namespace, topic_id, name, consumer_group, enabled, settings, secret, shard,
                                 cursor, created_by)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(topic_id)s, %(name)s, %(consumer_group)s, %(enabled)s, %(settings)s, %(secret)s,
        %(shard)s, %(cursor)s, %(created_by)s)
ON CONFLICT DO NOTHING
RETURNING created_at;

-- name: get
SELECT s.*, t.name AS topic, s.id::text AS sid, s.topic_id::text AS tid
  FROM event_subscriptions s JOIN event_topics t ON t.id = s.topic_id
 WHERE s.id = %(id)s::uuid AND s.tenant_id = %(tenant)s AND s.namespace = %(namespace)s;

-- name: lock
SELECT s.*, t.name AS topic, s.id::text AS sid, s.topic_id::text AS tid
  FROM event_subscriptions s JOIN event_topics t ON t.id = s.topic_id
 WHERE s.id = %(id)s::uuid AND s.tenant_id = %(tenant)s AND s.namespace = %(namespace)s
   FOR UPDATE OF s;

-- name: page
SELECT s.*, t.name AS topic, s.id::text AS sid, s.topic_id::text AS tid
  FROM event_subscriptions s JOIN event_topics t ON t.id = s.topic_id
 WHERE s.topic_id = %(topic_id)s::uuid AND s.tenant_id = %(tenant)s AND s.namespace = %(namespace)s
   AND (%(before)s::uuid IS NULL OR s.id < %(before)s::uuid)
 ORDER BY s.id DESC
 LIMIT %(limit)s;

-- name: update
UPDATE event_subscriptions
   SET name = %(name)s, consumer_group = %(consumer_group)s, enabled = %(enabled)s,
       disabled_reason = CASE WHEN %(enabled)s THEN NULL ELSE disabled_reason END, settings = %(settings)s,
       secret = %(secret)s, old_secret = %(old_secret)s, old_secret_until = %(old_secret_until)s,
       epoch = epoch + 1, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING updated_at;

-- name: disable -- the receiver wants no more
UPDATE event_subscriptions
   SET enabled = false, disabled_reason = %(reason)s, epoch = epoch + 1, updated_at = now()
 WHERE id = %(id)s::uuid AND enabled;

-- name: seek
UPDATE event_subscriptions
   SET replayed_to = greatest(replayed_to, cursor, %(seen)s), cursor = %(cursor)s, generations = generations + 1,
       generation = generations + 1, epoch = epoch + 1, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING generation;

-- name: next_generation
UPDATE event_subscriptions SET generations = generations + 1, epoch = epoch + 1 WHERE id = %(id)s::uuid
RETURNING generations;

-- name: touch
UPDATE event_subscriptions SET epoch = epoch + 1 WHERE id = %(id)s::uuid;

-- name: delete
DELETE FROM event_subscriptions WHERE id = %(id)s::uuid;

-- name: figures -- how far it is: messages after the cursor that have no row yet, and rows that wait, are lag
SELECT f.sid, f.ahead, f.queued, f.dlq, f.acked,
       (SELECT extract(epoch FROM now() - m.published_at)::float8 FROM event_messages m
         WHERE m.topic_id = f.topic_id AND m.sequence = f.acked + 1) AS oldest_s
  FROM (SELECT s.id::text AS sid, s.topic_id, greatest(0, h.last_sequence - s.cursor) -
               (SELECT count(*) FROM event_deliveries d WHERE d.subscription_id = s.id AND d.sequence > s.cursor
                                                          AND d.generation = s.generation) AS ahead,
               (SELECT count(*) FROM event_deliveries d WHERE d.subscription_id = s.id AND d.status = 'queued') AS queued,
               (SELECT count(*) FROM event_deliveries d WHERE d.subscription_id = s.id AND d.status = 'dlq') AS dlq,
               least(s.cursor, (SELECT min(d.sequence) - 1 FROM event_deliveries d
                                 WHERE d.subscription_id = s.id AND d.status = 'queued')) AS acked
          FROM event_subscriptions s JOIN event_heads h ON h.topic_id = s.topic_id
         WHERE s.id = ANY (%(ids)s::uuid[])) AS f;

-- name: shard -- everything that one duty serves, by id
SELECT s.*, t.name AS topic, s.id::text AS sid, s.topic_id::text AS tid
  FROM event_subscriptions s
  JOIN event_topics t ON t.id = s.topic_id
  JOIN tenants n ON n.id = s.tenant_id
 WHERE s.shard = ANY (%(shards)s::smallint[]) AND n.status = 'active'
   AND (%(after)s::uuid IS NULL OR s.id > %(after)s::uuid)
 ORDER BY s.id
 LIMIT %(limit)s;

-- name: of_shard
SELECT s.*, t.name AS topic, s.id::text AS sid, s.topic_id::text AS tid
  FROM event_subscriptions s
  JOIN event_topics t ON t.id = s.topic_id
  JOIN tenants n ON n.id = s.tenant_id
 WHERE s.id = ANY (%(ids)s::uuid[]) AND s.shard = ANY (%(shards)s::smallint[]) AND n.status = 'active';

-- name: glance -- has anything changed that no notification told of?
SELECT s.id::text AS sid, s.epoch, h.last_sequence AS last
  FROM event_subscriptions s JOIN tenants n ON n.id = s.tenant_id JOIN event_heads h ON h.topic_id = s.topic_id
 WHERE s.shard = ANY (%(shards)s::smallint[]) AND n.status = 'active';

-- name: take_charge -- those whose last reader did not end in good order
UPDATE event_subscriptions s SET in_charge = %(fence)s
  FROM (SELECT id, in_charge FROM event_subscriptions WHERE id = ANY (%(ids)s::uuid[]) FOR NO KEY UPDATE) was
 WHERE s.id = was.id
RETURNING s.id::text AS sid, was.in_charge IS NOT NULL AS torn;

-- name: leave_charge
UPDATE event_subscriptions SET in_charge = NULL WHERE id = ANY (%(ids)s::uuid[]) AND in_charge = %(fence)s;
