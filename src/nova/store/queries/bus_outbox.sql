-- What waits to become a message of its topic.

-- name: add
INSERT INTO bus_outbox (id, tenant_id, namespace, topic_id, status, not_before, payload, headers, ordering_key, attributes,
                        dedup_key, traceparent, tracestate, size, created_by)
SELECT i.id, i.tenant_id, i.namespace, i.topic_id, i.status, now() + make_interval(secs => i.delay_s), i.payload::json,
       i.headers::json, i.ordering_key, i.attributes::json, i.dedup_key, i.traceparent, i.tracestate, i.size, i.created_by
  FROM unnest(%(ids)b::uuid[], %(tenants)b::text[], %(namespaces)b::text[], %(topics)b::uuid[], %(statuses)b::text[],
              %(delays)b::float8[], %(payloads)b::text[], %(headers)b::text[], %(ordering_keys)b::text[],
              %(attributes)b::text[], %(dedup_keys)b::bytea[], %(traceparents)b::text[], %(tracestates)b::text[],
              %(sizes)b::int[], %(callers)b::text[])
       AS i (id, tenant_id, namespace, topic_id, status, delay_s, payload, headers, ordering_key, attributes, dedup_key,
             traceparent, tracestate, size, created_by);

-- name: due -- what one process relays at once; whoever cancels meanwhile waits, and finds it published
SELECT o.id::text AS id, o.tenant_id, o.namespace, t.name AS topic, o.payload::text AS payload, o.headers::text AS headers,
       o.ordering_key, o.attributes::text AS attributes, o.dedup_key, o.traceparent, o.tracestate, o.size, o.created_by
  FROM bus_outbox o JOIN event_topics t ON t.id = o.topic_id
 WHERE o.status = 'pending' AND o.not_before <= now()
 ORDER BY o.not_before, o.id
 LIMIT %(limit)s
   FOR UPDATE OF o SKIP LOCKED;

-- name: next_due
SELECT extract(epoch FROM not_before - clock_timestamp())::float8 AS seconds
  FROM bus_outbox
 WHERE status = 'pending'
 ORDER BY not_before, id
 LIMIT 1;

-- name: published
UPDATE bus_outbox o
   SET status = 'published', sequence = i.sequence, duplicate = i.duplicate, published_at = now(), payload = NULL
  FROM (SELECT i.sequence, i.duplicate, o.place
          FROM unnest(%(ids)b::uuid[], %(sequences)b::bigint[], %(duplicates)b::boolean[]) AS i (id, sequence, duplicate)
          JOIN LATERAL (SELECT o.ctid AS place FROM bus_outbox o WHERE o.id = i.id OFFSET 0) o ON true OFFSET 0) AS i
 WHERE o.ctid = i.place;

-- name: get
SELECT o.id::text AS id, t.name AS topic, o.status, o.not_before, o.payload::text AS payload, o.headers::text AS headers,
       o.ordering_key, o.size, o.sequence, o.duplicate, o.created_by, o.created_at, o.published_at
  FROM bus_outbox o JOIN event_topics t ON t.id = o.topic_id
 WHERE o.id = %(id)s::uuid AND o.tenant_id = %(tenant)s AND o.namespace = %(namespace)s;

-- name: page
SELECT o.id::text AS id, t.name AS topic, o.status, o.not_before, o.payload::text AS payload, o.headers::text AS headers,
       o.ordering_key, o.size, o.sequence, o.duplicate, o.created_by, o.created_at, o.published_at
  FROM bus_outbox o JOIN event_topics t ON t.id = o.topic_id
 WHERE o.topic_id = %(topic)s::uuid AND (%(status)s::text IS NULL OR o.status = %(status)s)
   AND (%(after)s::uuid IS NULL OR o.id < %(after)s::uuid)
 ORDER BY o.id DESC
 LIMIT %(limit)s;

-- name: release
UPDATE bus_outbox SET status = 'pending'
 WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND status = 'held';

-- name: cancel
DELETE FROM bus_outbox
 WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND status <> 'published';

-- name: delete_published
DELETE FROM bus_outbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM bus_outbox WHERE status = 'published' AND published_at < %(before)s
     ORDER BY published_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED));
