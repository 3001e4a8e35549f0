-- Messages of topics. The head of a topic is locked while it is written to.
-- Plans are made while tables are empty, when reading all of an index looks as good as anything. LATERAL with OFFSET 0 leaves
-- no way but to look each row up.

-- name: lock_by_name -- in one order, so that two publishers cannot wait for each other
SELECT t.id::text AS id, t.tenant_id, t.namespace, t.name, t.dedup_window_s, h.last_sequence, h.bytes,
       CASE WHEN t.schema_mode = 'reject' THEN t.schema END AS schema
  FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(names)b::text[]) AS i (tenant_id, namespace, name)
  JOIN LATERAL (SELECT * FROM event_topics t
                 WHERE t.tenant_id = i.tenant_id AND t.namespace = i.namespace AND t.name = i.name OFFSET 0) t ON true
  JOIN event_heads h ON h.topic_id = t.id
 ORDER BY h.topic_id
   FOR UPDATE OF h;

-- name: take_keys -- within the topic's lock. An expired key is free again.
INSERT INTO event_dedup AS d (topic_id, key, message_id, sequence, expires_at)
SELECT topic_id, key, message_id, 0, clock_timestamp() + make_interval(secs => window_s)
  FROM unnest(%(topics)b::uuid[], %(keys)b::bytea[], %(ids)b::uuid[], %(windows)b::int[])
       AS i (topic_id, key, message_id, window_s)
ON CONFLICT (topic_id, key) DO UPDATE
   SET message_id = excluded.message_id, sequence = excluded.sequence, expires_at = excluded.expires_at
 WHERE d.expires_at <= clock_timestamp()
RETURNING message_id::text AS id;

-- name: held_keys
SELECT d.topic_id::text AS topic_id, d.key, d.message_id::text AS id, d.sequence
  FROM unnest(%(topics)b::uuid[], %(keys)b::bytea[]) AS i (topic_id, key)
  JOIN LATERAL (SELECT * FROM event_dedup d WHERE d.topic_id = i.topic_id AND d.key = i.key OFFSET 0) d ON true;

-- name: place_keys
UPDATE event_dedup d SET sequence = i.sequence
  FROM (SELECT i.sequence, d.place
          FROM unnest(%(topics)b::uuid[], %(keys)b::bytea[], %(sequences)b::bigint[]) AS i (topic_id, key, sequence)
          JOIN LATERAL (SELECT d.ctid AS place FROM event_dedup d
                         WHERE d.topic_id = i.topic_id AND d.key = i.key OFFSET 0) d ON true OFFSET 0) AS i
 WHERE d.ctid = i.place;

-- name: append
WITH heads AS (
    UPDATE event_heads h SET last_sequence = i.last_sequence, bytes = i.bytes,
                             last_at = greatest(h.last_at, clock_timestamp())
      FROM unnest(%(heads)b::uuid[], %(lasts)b::bigint[], %(totals)b::bigint[]) AS i (topic_id, last_sequence, bytes)
     WHERE h.topic_id = i.topic_id
    RETURNING h.topic_id, h.last_at
)
INSERT INTO event_messages (topic_id, sequence, id, payload, headers, ordering_key, attributes, traceparent, tracestate,
                            size, position, published_by, published_at)
SELECT i.topic_id, i.sequence, i.id, i.payload::json, i.headers::json, i.ordering_key, i.attributes::json, i.traceparent,
       i.tracestate, i.size, i.position, i.published_by, heads.last_at
  FROM unnest(%(topics)b::uuid[], %(sequences)b::bigint[], %(ids)b::uuid[], %(payloads)b::text[], %(headers)b::text[],
              %(ordering_keys)b::text[], %(attributes)b::text[], %(traceparents)b::text[], %(tracestates)b::text[],
              %(sizes)b::int[], %(positions)b::bigint[], %(callers)b::text[])
       AS i (topic_id, sequence, id, payload, headers, ordering_key, attributes, traceparent, tracestate, size, position,
             published_by)
  JOIN heads USING (topic_id);

-- name: append_plain -- the same in one statement, when no message has a name and its topic no schema
WITH locked AS (
    SELECT h.topic_id, i.no, i.messages, i.bytes
      FROM unnest(%(nos)b::int[], %(tenants)b::text[], %(namespaces)b::text[], %(names)b::text[], %(counts)b::bigint[],
                  %(totals)b::bigint[]) AS i (no, tenant_id, namespace, name, messages, bytes)
      JOIN LATERAL (SELECT t.id FROM event_topics t
                     WHERE t.tenant_id = i.tenant_id AND t.namespace = i.namespace AND t.name = i.name
                       AND t.schema_mode = 'off' OFFSET 0) t ON true
      JOIN event_heads h ON h.topic_id = t.id
     ORDER BY h.topic_id
       FOR UPDATE OF h
), heads AS (
    UPDATE event_heads h SET last_sequence = h.last_sequence + l.messages, bytes = h.bytes + l.bytes,
                             last_at = greatest(h.last_at, clock_timestamp())
      FROM locked l
     WHERE h.topic_id = l.topic_id
    RETURNING h.topic_id, l.no, h.last_sequence - l.messages AS last_sequence, h.bytes - l.bytes AS bytes, h.last_at
), added AS (
    INSERT INTO event_messages (topic_id, sequence, id, payload, headers, ordering_key, attributes, traceparent,
                                tracestate, size, position, published_by, published_at)
    SELECT heads.topic_id, heads.last_sequence + i.sequence, i.id, i.payload::json, i.headers::json, i.ordering_key,
           i.attributes::json, i.traceparent, i.tracestate, i.size, heads.bytes + i.position, i.published_by, heads.last_at
      FROM unnest(%(topics)b::int[], %(sequences)b::bigint[], %(ids)b::uuid[], %(payloads)b::text[], %(headers)b::text[],
                  %(ordering_keys)b::text[], %(attributes)b::text[], %(traceparents)b::text[], %(tracestates)b::text[],
                  %(sizes)b::int[], %(positions)b::bigint[], %(callers)b::text[])
           AS i (no, sequence, id, payload, headers, ordering_key, attributes, traceparent, tracestate, size, position,
                 published_by)
      JOIN heads USING (no)
)
SELECT topic_id::text AS id, no, last_sequence FROM heads;

-- name: ends
SELECT first_sequence, last_sequence, bytes FROM event_heads WHERE topic_id = %(topic)s::uuid;

-- name: read_after -- nothing below the first that is kept
SELECT m.topic_id::text AS topic_id, m.sequence, m.id::text AS id, m.payload::text AS payload, m.headers::text AS headers,
       m.ordering_key, m.attributes::text AS attributes, m.traceparent, m.tracestate, m.size, m.published_by,
       m.published_at
  FROM event_messages m
 WHERE m.topic_id = %(topic)s::uuid
   AND m.sequence >= greatest(%(after)s::bigint + 1,
                              (SELECT first_sequence FROM event_heads WHERE topic_id = %(topic)s::uuid))
 ORDER BY m.sequence
 LIMIT %(limit)s;

-- name: read_key
SELECT m.topic_id::text AS topic_id, m.sequence, m.id::text AS id, m.payload::text AS payload, m.headers::text AS headers,
       m.ordering_key, m.attributes::text AS attributes, m.traceparent, m.tracestate, m.size, m.published_by,
       m.published_at
  FROM event_messages m
 WHERE m.topic_id = %(topic)s::uuid AND m.ordering_key = %(ordering_key)s
   AND m.sequence >= greatest(%(after)s::bigint + 1,
                              (SELECT first_sequence FROM event_heads WHERE topic_id = %(topic)s::uuid))
 ORDER BY m.sequence
 LIMIT %(limit)s;

-- name: by_id
WITH m AS MATERIALIZED (SELECT * FROM event_messages WHERE id = ANY (%(ids)s::uuid[]))
SELECT m.topic_id::text AS topic_id, m.sequence, m.id::text AS id, m.payload::text AS payload, m.headers::text AS headers,
       m.ordering_key, m.attributes::text AS attributes, m.traceparent, m.tracestate, m.size, m.published_by,
       m.published_at
  FROM m
 WHERE m.topic_id = %(topic)s::uuid
   AND m.sequence >= (SELECT first_sequence FROM event_heads WHERE topic_id = %(topic)s::uuid)
 ORDER BY m.sequence;

-- name: by_sequence
SELECT m.topic_id::text AS topic_id, m.sequence, m.id::text AS id, m.payload::text AS payload, m.headers::text AS headers,
       m.ordering_key, m.attributes::text AS attributes, m.traceparent, m.tracestate, m.size, m.published_by,
       m.published_at
  FROM unnest(%(sequences)s::bigint[]) AS i (sequence)
  JOIN LATERAL (SELECT * FROM event_messages m
                 WHERE m.topic_id = %(topic)s::uuid AND m.sequence = i.sequence OFFSET 0) m ON true
 WHERE m.sequence >= (SELECT first_sequence FROM event_heads WHERE topic_id = %(topic)s::uuid)
 ORDER BY m.sequence;

-- name: sequence_at -- times grow with sequences: halve the range until one is left
WITH RECURSIVE search (low, high) AS (
    SELECT first_sequence, last_sequence + 1 FROM event_heads WHERE topic_id = %(topic)s::uuid
    UNION ALL
    SELECT CASE WHEN m.published_at < %(at)s THEN m.sequence + 1 ELSE s.low END,
           CASE WHEN m.published_at < %(at)s THEN s.high ELSE m.sequence END
      FROM search s
      JOIN LATERAL (SELECT * FROM event_messages m
                     WHERE m.topic_id = %(topic)s::uuid AND m.sequence = (s.low + s.high) / 2 OFFSET 0) m ON true
     WHERE s.low < s.high
)
SELECT low AS sequence FROM search WHERE low >= high;

-- name: sequence_of_position -- the same by bytes: the first message that begins at or after a position
WITH RECURSIVE search (low, high) AS (
    SELECT first_sequence, last_sequence + 1 FROM event_heads WHERE topic_id = %(topic)s::uuid
    UNION ALL
    SELECT CASE WHEN m.position < %(position)s THEN m.sequence + 1 ELSE s.low END,
           CASE WHEN m.position < %(position)s THEN s.high ELSE m.sequence END
      FROM search s
      JOIN LATERAL (SELECT * FROM event_messages m
                     WHERE m.topic_id = %(topic)s::uuid AND m.sequence = (s.low + s.high) / 2 OFFSET 0) m ON true
     WHERE s.low < s.high
)
SELECT low AS sequence FROM search WHERE low >= high;

-- name: past_retention -- topics whose oldest message is too old, or that hold too much
SELECT t.id::text AS id, h.bytes, t.retention_hours, t.max_retained_mb
  FROM event_topics t JOIN event_heads h ON h.topic_id = t.id
  JOIN LATERAL (SELECT * FROM event_messages m
                 WHERE m.topic_id = t.id AND m.sequence = h.first_sequence OFFSET 0) m ON true
 WHERE m.published_at < %(now)s - make_interval(hours => t.retention_hours)
    OR h.bytes - m.position > t.max_retained_mb::bigint << 20
 LIMIT %(limit)s;

-- name: keep_from
UPDATE event_heads SET first_sequence = greatest(first_sequence, least(%(sequence)s, last_sequence + 1))
 WHERE topic_id = %(topic)s::uuid;

-- name: delete_past -- of topics that are kept: what is below their first message
DELETE FROM event_messages WHERE ctid = ANY (ARRAY(
    SELECT m.ctid FROM event_heads h JOIN LATERAL (
        SELECT ctid FROM event_messages m WHERE m.topic_id = h.topic_id AND m.sequence < h.first_sequence
         ORDER BY m.sequence LIMIT %(limit)s) m ON true
     LIMIT %(limit)s));

-- name: delete_orphans -- of topics that are gone
DELETE FROM event_messages WHERE ctid = ANY (ARRAY(
    SELECT m.ctid FROM event_heads h JOIN LATERAL (
        SELECT ctid FROM event_messages m WHERE m.topic_id = h.topic_id ORDER BY m.sequence LIMIT %(limit)s) m ON true
     WHERE NOT EXISTS (SELECT FROM event_topics t WHERE t.id = h.topic_id)
     LIMIT %(limit)s));

-- name: delete_heads
DELETE FROM event_heads h
 WHERE NOT EXISTS (SELECT FROM event_topics t WHERE t.id = h.topic_id)
   AND NOT EXISTS (SELECT FROM event_messages m WHERE m.topic_id = h.topic_id);

-- name: delete_keys
DELETE FROM event_dedup WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM event_dedup WHERE expires_at < %(now)s ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED));
