-- Schedules. Ids are UUIDv7, so ordering by id is ordering by creation.

-- name: insert
INSERT INTO schedules (id, tenant_id, namespace, target_type, target, function_id, workflow_id, name, cron_expression,
                       timezone, input, qualifier, enabled, overlap_policy, catch_up, catch_up_window_s, jitter_s, start_at,
                       end_at, max_attempts, timeout_s, anchor, next_run_at, due_at, created_by)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(target_type)s, %(target)s, %(function_id)s, %(workflow_id)s, %(name)s,
        %(cron_expression)s, %(timezone)s, %(input)s, %(qualifier)s, %(enabled)s, %(overlap_policy)s, %(catch_up)s,
        %(catch_up_window_s)s, %(jitter_s)s, %(start_at)s, %(end_at)s, %(max_attempts)s, %(timeout_s)s, %(anchor)s,
        %(next_run_at)s, %(due_at)s, %(created_by)s)
ON CONFLICT (tenant_id, namespace, target_type, target, name) DO NOTHING
RETURNING *;

-- name: get
SELECT *
  FROM schedules
 WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: lock
SELECT *
  FROM schedules
 WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s
   FOR UPDATE;

-- name: list
SELECT *
  FROM schedules
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s
   AND (%(after)s::uuid IS NULL OR id < %(after)s::uuid)
   AND (%(target)s::text IS NULL OR target = %(target)s)
   AND (%(target_type)s::text IS NULL OR target_type = %(target_type)s)
   AND (%(enabled)s::boolean IS NULL OR enabled = %(enabled)s)
   AND (%(q)s::text IS NULL OR strpos(lower(name), lower(%(q)s)) > 0 OR strpos(lower(target), lower(%(q)s)) > 0)
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: update
UPDATE schedules
   SET name = %(name)s, cron_expression = %(cron_expression)s, timezone = %(timezone)s, input = %(input)s,
       qualifier = %(qualifier)s, enabled = %(enabled)s, overlap_policy = %(overlap_policy)s, catch_up = %(catch_up)s,
       catch_up_window_s = %(catch_up_window_s)s, jitter_s = %(jitter_s)s, start_at = %(start_at)s, end_at = %(end_at)s,
       max_attempts = %(max_attempts)s, timeout_s = %(timeout_s)s, anchor = %(anchor)s, next_run_at = %(next_run_at)s,
       due_at = %(due_at)s, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING *;

-- name: delete
DELETE FROM schedules WHERE id = %(id)s::uuid AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: due -- whoever changes one of them waits until it has fired. A suspended tenant's stay as they are.
SELECT s.*
  FROM schedules s JOIN tenants t ON t.id = s.tenant_id AND t.status = 'active'
 WHERE s.due_at <= %(until)s
 ORDER BY s.due_at, s.id
 LIMIT %(limit)s
   FOR UPDATE OF s SKIP LOCKED;

-- name: next_due -- a row that somebody holds at this moment has its notification still to come
SELECT s.due_at FROM schedules s JOIN tenants t ON t.id = s.tenant_id AND t.status = 'active'
 WHERE s.due_at <= %(until)s
 ORDER BY s.due_at
 LIMIT 1;

-- name: ahead -- by id, for those who look at all of them
SELECT *
  FROM schedules
 WHERE due_at > %(since)s AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid)
 ORDER BY id
 LIMIT %(limit)s
   FOR UPDATE;

-- name: advance
UPDATE schedules s
   SET next_run_at = n.next_run_at, due_at = n.due_at,
       last_run_at = coalesce(n.fired_at, s.last_run_at), last_status = coalesce(n.status, s.last_status),
       last_invocation_id = coalesce(n.invocation_id, s.last_invocation_id),
       last_run_id = coalesce(n.run_id, s.last_run_id)
  FROM unnest(%(ids)s::uuid[], %(next_run_ats)s::timestamptz[], %(due_ats)s::timestamptz[], %(fired_ats)s::timestamptz[],
              %(statuses)s::text[], %(invocation_ids)s::uuid[], %(run_ids)s::uuid[])
       AS n (id, next_run_at, due_at, fired_at, status, invocation_id, run_id)
 WHERE s.id = n.id;

-- name: claim_runs -- the lock: an instant that has been decided about is not decided about again. One that was written
-- off as missed may still fire, when the clock that said so was wrong.
INSERT INTO schedule_runs AS r (schedule_id, scheduled_for, fired_at, status, reason, catch_up, invocation_id, run_id)
SELECT * FROM unnest(%(ids)s::uuid[], %(scheduled_fors)s::timestamptz[], %(fired_ats)s::timestamptz[], %(statuses)s::text[],
                     %(reasons)s::text[], %(catch_ups)s::boolean[], %(invocation_ids)s::uuid[], %(run_ids)s::uuid[])
ON CONFLICT (schedule_id, scheduled_for) DO UPDATE
   SET fired_at = excluded.fired_at, status = excluded.status, reason = excluded.reason, catch_up = excluded.catch_up,
       invocation_id = excluded.invocation_id, run_id = excluded.run_id
 WHERE r.status = 'missed' AND excluded.status <> 'missed'
RETURNING schedule_id, scheduled_for;

-- name: unfinished_jobs
SELECT id::text AS id FROM async_invocations WHERE id = ANY (%(ids)s::uuid[]) AND status = 'queued';

-- name: unfinished_runs
SELECT id::text AS id FROM dag_runs WHERE id = ANY (%(ids)s::uuid[]) AND finished_at IS NULL;

-- name: settle_runs
UPDATE schedule_runs r
   SET fired_at = n.fired_at, status = n.status, reason = n.reason, invocation_id = n.invocation_id, run_id = n.run_id
  FROM unnest(%(ids)s::uuid[], %(scheduled_fors)s::timestamptz[], %(fired_ats)s::timestamptz[], %(statuses)s::text[],
              %(reasons)s::text[], %(invocation_ids)s::uuid[], %(run_ids)s::uuid[])
       AS n (schedule_id, scheduled_for, fired_at, status, reason, invocation_id, run_id)
 WHERE r.schedule_id = n.schedule_id AND r.scheduled_for = n.scheduled_for;

-- name: count_queued
SELECT schedule_id, count(*) AS waiting FROM schedule_runs
 WHERE schedule_id = ANY (%(ids)s::uuid[]) AND status = 'queued'
 GROUP BY schedule_id;

-- name: any_queued
SELECT EXISTS (SELECT FROM schedule_runs WHERE status = 'queued') AS waiting;

-- name: released -- of each schedule whose last job or run has ended, the oldest instant that waits
SELECT s.*,
       w.scheduled_for, w.catch_up AS late
  FROM (SELECT schedule_id, min(scheduled_for) AS scheduled_for FROM schedule_runs WHERE status = 'queued'
         GROUP BY schedule_id) first
  JOIN schedule_runs w USING (schedule_id, scheduled_for)
  JOIN schedules s ON s.id = w.schedule_id
  JOIN tenants t ON t.id = s.tenant_id AND t.status = 'active'
 WHERE NOT EXISTS (SELECT FROM async_invocations a WHERE a.id = s.last_invocation_id AND a.status = 'queued')
   AND NOT EXISTS (SELECT FROM dag_runs d WHERE d.id = s.last_run_id AND d.finished_at IS NULL)
 ORDER BY s.id
 LIMIT %(limit)s
   FOR UPDATE OF s, w SKIP LOCKED;

-- name: runs
SELECT r.scheduled_for, r.fired_at, r.status, r.reason, r.catch_up, r.invocation_id::text AS invocation_id,
       r.run_id::text AS run_id,
       CASE WHEN a.status = 'queued' AND w.lease_until > now() THEN 'running' ELSE coalesce(a.status, d.status) END AS outcome
  FROM schedule_runs r
  LEFT JOIN async_invocations a ON a.id = r.invocation_id
  LEFT JOIN work w ON w.id = r.invocation_id
  LEFT JOIN dag_runs d ON d.id = r.run_id
 WHERE r.schedule_id = %(id)s::uuid AND (%(before)s::timestamptz IS NULL OR r.scheduled_for < %(before)s)
   AND (%(status)s::text IS NULL OR r.status = %(status)s)
 ORDER BY r.scheduled_for DESC
 LIMIT %(limit)s;

-- name: drop_queued
UPDATE schedule_runs SET status = 'skipped', reason = %(reason)s WHERE schedule_id = %(id)s::uuid AND status = 'queued';

-- name: kept_ready -- by id; functions that want instances although nobody calls them, always or at times
SELECT f.id::text AS id, f.tenant_id, f.namespace, f.name,
       coalesce((f.data -> 'recorded' ->> 'min_replicas')::int, 0) AS min_replicas,
       coalesce((f.data -> 'recorded' ->> 'max_replicas')::int, 0) AS max_replicas,
       coalesce(f.data -> 'recorded' -> 'provisioned', '[]'::jsonb) AS provisioned
  FROM functions f JOIN tenants t ON t.id = f.tenant_id AND t.status = 'active'
 WHERE ((f.data -> 'recorded' ->> 'min_replicas')::int > 0
        OR jsonb_array_length(f.data -> 'recorded' -> 'provisioned') > 0) AND f.live_version IS NOT NULL
   AND (%(after)s::uuid IS NULL OR f.id > %(after)s::uuid)
 ORDER BY f.id
 LIMIT %(limit)s;
