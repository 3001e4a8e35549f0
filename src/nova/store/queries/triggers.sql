-- Triggers. Ids are UUIDv7, so ordering by id is ordering by creation.

-- name: insert
WITH made AS (
    INSERT INTO triggers (id, tenant_id, namespace, name, type, target_type, target, qualifier, enabled, config, filters,
                          batch_size, batch_window_ms, max_inflight, on_error, max_attempts, created_by)
    VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(type)s, %(target_type)s, %(target)s, %(qualifier)s,
            %(enabled)s, %(config)s, %(filters)s, %(batch_size)s, %(batch_window_ms)s, %(max_inflight)s, %(on_error)s,
            %(max_attempts)s, %(created_by)s)
    ON CONFLICT (tenant_id, namespace, name) DO NOTHING
    RETURNING *
), status AS (
    INSERT INTO trigger_status (trigger_id) SELECT id FROM made
)
SELECT * FROM made;

-- name: get
SELECT * FROM triggers WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: get_by_name
SELECT * FROM triggers WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s;

-- name: lock
SELECT * FROM triggers WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s FOR UPDATE;

-- name: list
SELECT * FROM triggers
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s
   AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
   AND (%(type)s::text IS NULL OR type = %(type)s)
   AND (%(target)s::text IS NULL OR target = %(target)s)
   AND (%(enabled)s::boolean IS NULL OR enabled = %(enabled)s)
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: update -- a source that is another one now begins anew
WITH moved AS (
    DELETE FROM trigger_offsets o USING triggers t
     WHERE t.id = %(id)s::uuid AND o.trigger_id = t.id AND %(elsewhere)s
), again AS (
    UPDATE trigger_status SET state = 'starting', last_error = NULL, lag = NULL WHERE trigger_id = %(id)s::uuid
)
UPDATE triggers
   SET name = %(name)s, target_type = %(target_type)s, target = %(target)s, qualifier = %(qualifier)s,
       enabled = %(enabled)s, config = %(config)s, filters = %(filters)s, batch_size = %(batch_size)s, batch_window_ms = %(batch_window_ms)s,
       max_inflight = %(max_inflight)s, on_error = %(on_error)s, max_attempts = %(max_attempts)s,
       revision = revision + 1, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING *;

-- name: delete -- with the lease of its duty, which nobody will want again
WITH duty AS (
    DELETE FROM leases WHERE duty = 'trigger/' || %(id)s
)
DELETE FROM triggers WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: statuses -- of those that somebody is in charge of, by whom
SELECT s.trigger_id::text AS id, s.state, s.last_error, s.lag, s.received, s.processed, s.failed, s.last_event_at, l.node
  FROM trigger_status s
  LEFT JOIN leases l ON l.duty = 'trigger/' || s.trigger_id AND l.until > now()
 WHERE s.trigger_id = ANY (%(ids)s::uuid[]);

-- name: enabled -- of active tenants: all of them, or those asked for
SELECT t.* FROM triggers t JOIN tenants n ON n.id = t.tenant_id AND n.status = 'active'
 WHERE t.enabled AND (%(ids)s::uuid[] IS NULL OR t.id = ANY (%(ids)s::uuid[]));

-- name: report -- the counts are what came to them since the last time; what is NULL stays as it is
UPDATE trigger_status s
   SET state = coalesce(n.state, s.state),
       last_error = CASE WHEN n.state IS NULL THEN s.last_error ELSE n.last_error END,
       lag = CASE WHEN n.state IS NULL THEN s.lag ELSE n.lag END,
       received = s.received + n.received, processed = s.processed + n.processed, failed = s.failed + n.failed,
       last_event_at = greatest(s.last_event_at, n.last_event_at)
  FROM unnest(%(ids)s::uuid[], %(states)s::text[], %(last_errors)s::text[], %(lags)s::bigint[], %(receiveds)s::bigint[],
              %(processeds)s::bigint[], %(faileds)s::bigint[], %(last_event_ats)s::timestamptz[])
       AS n (id, state, last_error, lag, received, processed, failed, last_event_at)
 WHERE s.trigger_id = n.id;

-- name: position
SELECT position FROM trigger_offsets WHERE trigger_id = %(id)s::uuid;

-- name: save_position
INSERT INTO trigger_offsets (trigger_id, position) VALUES (%(id)s::uuid, %(position)s)
ON CONFLICT (trigger_id) DO UPDATE SET position = excluded.position, updated_at = now();

-- name: dead_letter -- a job that has ended already: it is listed, retried and kept like the others. Nothing when the
-- function is not there.
INSERT INTO async_invocations (id, tenant_id, namespace, function_id, function_name, qualifier, payload, status, attempt,
                               max_attempts, backoff_base_ms, backoff_max_ms, max_age_s, source, caller, attempts,
                               request_id, error, started_at, finished_at)
SELECT %(id)s::uuid, f.tenant_id, f.namespace, f.id, f.name, %(qualifier)s, %(payload)s::json, 'dlq', %(attempt)s,
       %(attempt)s, %(backoff_base_ms)s, %(backoff_max_ms)s, %(max_age_s)s, %(source)s, %(caller)s, %(attempts)s::jsonb,
       %(request_id)s::uuid, %(error)s::jsonb, %(started_at)s, now()
  FROM functions f
 WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name = %(function)s
RETURNING id::text AS id;
