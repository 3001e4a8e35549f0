-- Topics. Ids are UUIDv7, so ordering by id is ordering by creation.

-- name: insert
INSERT INTO event_topics (id, tenant_id, namespace, name, description, retention_hours, max_retained_mb, dedup_window_s,
                          schema, schema_mode, created_by)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(description)s, %(retention_hours)s, %(max_retained_mb)s,
        %(dedup_window_s)s, %(schema)s, %(schema_mode)s, %(created_by)s)
ON CONFLICT (tenant_id, namespace, name) DO NOTHING;

-- name: insert_head
INSERT INTO event_heads (topic_id) VALUES (%(id)s);

-- name: get
SELECT t.id::text AS id, t.tenant_id, t.namespace, t.name, t.description, t.retention_hours, t.max_retained_mb,
       t.dedup_window_s, t.schema, t.schema_mode, t.created_by, t.created_at, t.updated_at, h.first_sequence, h.last_sequence,
       h.bytes - coalesce(m.position, h.bytes) AS bytes, h.last_at
  FROM event_topics t JOIN event_heads h ON h.topic_id = t.id
  LEFT JOIN LATERAL (SELECT m.position FROM event_messages m
                      WHERE m.topic_id = t.id AND m.sequence = h.first_sequence OFFSET 0) m ON true
 WHERE t.tenant_id = %(tenant)s AND t.namespace = %(namespace)s AND t.name = %(name)s;

-- name: lock
SELECT id::text AS id FROM event_topics
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s
   FOR UPDATE;

-- name: page
SELECT t.id::text AS id, t.tenant_id, t.namespace, t.name, t.description, t.retention_hours, t.max_retained_mb,
       t.dedup_window_s, t.schema, t.schema_mode, t.created_by, t.created_at, t.updated_at, h.first_sequence, h.last_sequence,
       h.bytes - coalesce(m.position, h.bytes) AS bytes, h.last_at
  FROM event_topics t JOIN event_heads h ON h.topic_id = t.id
  LEFT JOIN LATERAL (SELECT m.position FROM event_messages m
                      WHERE m.topic_id = t.id AND m.sequence = h.first_sequence OFFSET 0) m ON true
 WHERE t.tenant_id = %(tenant)s AND t.namespace = %(namespace)s
   AND (%(after)s::uuid IS NULL OR t.id < %(after)s::uuid)
   AND (%(q)s::text IS NULL OR strpos(lower(t.name), lower(%(q)s)) > 0)
 ORDER BY t.id DESC
 LIMIT %(limit)s;

-- name: update
UPDATE event_topics
   SET description = %(description)s, retention_hours = %(retention_hours)s, max_retained_mb = %(max_retained_mb)s,
       dedup_window_s = %(dedup_window_s)s, schema = %(schema)s, schema_mode = %(schema_mode)s, updated_at = now()
 WHERE id = %(id)s::uuid;

-- name: delete
DELETE FROM event_topics WHERE id = %(id)s::uuid;

-- name: subscriptions -- while the topic is locked no other can come
SELECT name FROM event_subscriptions WHERE topic_id = %(id)s::uuid ORDER BY name LIMIT 100;

-- name: delete_subscriptions
DELETE FROM event_subscriptions WHERE topic_id = %(id)s::uuid RETURNING id::text AS id;
