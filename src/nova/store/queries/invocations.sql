-- Call records. Lists are newest first by (created_at, id); live tails follow seq, which is the order of commits.

-- name: function_id
SELECT id FROM functions WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s;

-- name: serialise_and_announce
SELECT pg_advisory_xact_lock(1852797537), pg_notify('nova_logs', %(functions)s);

-- name: stage
CREATE TEMP TABLE staged_calls (LIKE invocation_logs INCLUDING DEFAULTS) ON COMMIT DROP;

-- name: unstage
INSERT INTO invocation_logs SELECT * FROM staged_calls ORDER BY seq ON CONFLICT (id, created_at) DO NOTHING;

-- name: function_logs
SELECT id, created_at, tenant_id, namespace, function_id, function_name, version, qualifier, runtime, trigger, caller,
       status, error_kind, error_message, error_stack, cold_start, start_source, instance_id, duration_ms, queue_ms,
       boot_ms, runtime_ms, init_ms, import_ms, outcome, input_size, output_size, trace_id, client_request_id, stdout, stderr
  FROM invocation_logs
 WHERE function_id = %(function_id)s
   AND (%(request_id)s::uuid IS NULL OR id = %(request_id)s)
   AND (%(status)s::text IS NULL OR status = %(status)s)
   AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR created_at < %(until)s)
   AND (%(version)s::int IS NULL OR version = %(version)s)
   AND (%(cold_start)s::boolean IS NULL OR cold_start = %(cold_start)s)
   AND (%(q)s::text IS NULL OR position(%(q)s IN stdout) > 0 OR position(%(q)s IN stderr) > 0)
   AND (%(before)s::timestamptz IS NULL OR (created_at, id) < (%(before)s, %(before_id)s::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s;

-- name: scope_calls
SELECT id, created_at, tenant_id, namespace, function_id, function_name, version, qualifier, runtime, trigger, caller,
       status, error_kind, error_message, error_stack, cold_start, start_source, instance_id, duration_ms, queue_ms,
       boot_ms, runtime_ms, init_ms, import_ms, outcome, input_size, output_size, trace_id, client_request_id
  FROM invocation_logs
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s
   AND (%(function)s::text IS NULL OR function_name = %(function)s)
   AND (%(status)s::text IS NULL OR status = %(status)s)
   AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s)
   AND (%(runtime)s::text IS NULL OR runtime = %(runtime)s)
   AND (%(version)s::int IS NULL OR version = %(version)s)
   AND (%(caller)s::text IS NULL OR caller = %(caller)s)
   AND (%(trace_id)s::text IS NULL OR trace_id = %(trace_id)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR created_at < %(until)s)
   AND (%(min_duration_ms)s::float8 IS NULL OR duration_ms >= %(min_duration_ms)s)
   AND (%(cold_start)s::boolean IS NULL OR cold_start = %(cold_start)s)
   AND (%(q)s::text IS NULL OR position(%(q)s IN stdout) > 0 OR position(%(q)s IN stderr) > 0)
   AND (%(before)s::timestamptz IS NULL OR (created_at, id) < (%(before)s, %(before_id)s::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s;

-- name: call
SELECT id, created_at, tenant_id, namespace, function_id, function_name, version, qualifier, runtime, trigger, caller,
       status, error_kind, error_message, error_stack, cold_start, start_source, instance_id, duration_ms, queue_ms,
       boot_ms, runtime_ms, init_ms, import_ms, outcome, input_size, output_size, trace_id, client_request_id, stdout, stderr,
       input::text AS input, output::text AS output
  FROM invocation_logs
 WHERE id = %(id)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s;

-- name: feed_end
SELECT coalesce(max(seq), 0) AS seq FROM invocation_logs WHERE function_id = %(function_id)s;

-- name: feed_start
SELECT coalesce(min(seq) FILTER (WHERE created_at >= %(since)s) - 1, max(seq), 0) AS seq
  FROM invocation_logs
 WHERE function_id = %(function_id)s;

-- name: feed
SELECT seq, id, created_at, version, status, error_kind, error_message, error_stack, cold_start, duration_ms, stdout,
       stderr
  FROM invocation_logs
 WHERE function_id = %(function_id)s AND seq > %(after)s
   AND (%(request_id)s::uuid IS NULL OR id = %(request_id)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
 ORDER BY seq
 LIMIT %(limit)s;

-- name: figures
SELECT version, count(*) AS calls,
       count(*) FILTER (WHERE success) AS success, count(*) FILTER (WHERE NOT success) AS failed,
       count(*) FILTER (WHERE cold_start) AS cold, count(*) FILTER (WHERE NOT cold_start) AS warm,
       avg(duration_ms) AS avg_ms, min(duration_ms) AS min_ms, max(duration_ms) AS max_ms,
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms) AS percentiles
  FROM invocation_logs
 WHERE function_id = %(function_id)s AND created_at >= %(since)s AND created_at < %(until)s
 GROUP BY GROUPING SETS ((), (version))
 ORDER BY version NULLS FIRST;

-- name: lock_partitions
SELECT pg_advisory_xact_lock(1852797538);

-- name: partitions
SELECT c.relname AS name
  FROM pg_inherits i
  JOIN pg_class c ON c.oid = i.inhrelid
 WHERE i.inhparent = 'invocation_logs'::regclass
 ORDER BY c.relname;

-- name: default_holds
SELECT EXISTS (
    SELECT 1 FROM invocation_logs_default WHERE created_at >= %(start)s AND created_at < %(stop)s
) AS held;

-- name: purge_default
DELETE FROM invocation_logs_default WHERE created_at < %(before)s;
