-- Time series: rolled up from call records, read as buckets and as a heatmap.

-- name: position -- the row is locked: nobody else rolls up until this transaction ends
SELECT seq FROM rollup_positions WHERE name = 'calls' FOR UPDATE;

-- name: batch_end
SELECT max(seq) AS seq FROM (
    SELECT seq FROM invocation_logs WHERE seq > %(after)s ORDER BY seq LIMIT %(limit)s
) AS next;

-- name: advance
UPDATE rollup_positions SET seq = %(seq)s WHERE name = 'calls';

-- name: roll_up -- the records of one batch, by function version and for the namespace, into minutes and hours
WITH fresh AS (
    SELECT l.tenant_id, l.namespace, l.function_id, l.function_name, l.version, l.success, l.cold_start, l.duration_ms,
           date_trunc('minute', l.created_at) AS minute, date_trunc('hour', l.created_at) AS hour,
           width_bucket(l.duration_ms, %(bounds)s::float8[]) AS cell,
           coalesce((v.data #>> '{limits,memory_mb}')::float8, 0) / 1024 * l.duration_ms / 1000 AS gb_seconds
      FROM invocation_logs l
      LEFT JOIN function_versions v ON v.function_id = l.function_id AND v.version = l.version
     WHERE l.seq > %(after)s AND l.seq <= %(upto)s
), sums AS (
    SELECT tenant_id, namespace, minute, hour,
           coalesce(function_id, '00000000-0000-0000-0000-000000000000') AS function_id, coalesce(version, 0) AS version,
           CASE WHEN grouping(function_id) = 0 THEN max(function_name) ELSE '' END AS function_name,
           count(*) AS invocations, count(*) FILTER (WHERE NOT success) AS errors,
           count(*) FILTER (WHERE cold_start) AS cold_starts,
           sum(duration_ms) AS duration_sum_ms, min(duration_ms) AS duration_min_ms, max(duration_ms) AS duration_max_ms,
           cell_counts(array_agg(cell)) AS durations, sum(gb_seconds) AS gb_seconds
      FROM fresh
     GROUP BY GROUPING SETS (
           (tenant_id, namespace, function_id, version, minute), (tenant_id, namespace, minute),
           (tenant_id, namespace, function_id, version, hour), (tenant_id, namespace, hour))
), minutes AS (
    INSERT INTO metrics_minute AS m (
           tenant_id, namespace, function_id, bucket, version, function_name, invocations, errors, cold_starts,
           duration_sum_ms, duration_min_ms, duration_max_ms, durations, gb_seconds)
    SELECT tenant_id, namespace, function_id, minute, version, function_name, invocations, errors, cold_starts,
           duration_sum_ms, duration_min_ms, duration_max_ms, durations, gb_seconds
      FROM sums WHERE minute IS NOT NULL
     ORDER BY tenant_id, namespace, function_id, minute, version
    ON CONFLICT (tenant_id, namespace, function_id, bucket, version) DO UPDATE SET
           function_name = excluded.function_name,
           invocations = m.invocations + excluded.invocations,
           errors = m.errors + excluded.errors,
           cold_starts = m.cold_starts + excluded.cold_starts,
           duration_sum_ms = m.duration_sum_ms + excluded.duration_sum_ms,
           duration_min_ms = least(m.duration_min_ms, excluded.duration_min_ms),
           duration_max_ms = greatest(m.duration_max_ms, excluded.duration_max_ms),
           durations = add_counts(m.durations, excluded.durations),
           gb_seconds = m.gb_seconds + excluded.gb_seconds
)
INSERT INTO metrics_hour AS m (
       tenant_id, namespace, function_id, bucket, version, function_name, invocations, errors, cold_starts,
       duration_sum_ms, duration_min_ms, duration_max_ms, durations, gb_seconds)
SELECT tenant_id, namespace, function_id, hour, version, function_name, invocations, errors, cold_starts,
       duration_sum_ms, duration_min_ms, duration_max_ms, durations, gb_seconds
  FROM sums WHERE hour IS NOT NULL
 ORDER BY tenant_id, namespace, function_id, hour, version
ON CONFLICT (tenant_id, namespace, function_id, bucket, version) DO UPDATE SET
       function_name = excluded.function_name,
       invocations = m.invocations + excluded.invocations,
       errors = m.errors + excluded.errors,
       cold_starts = m.cold_starts + excluded.cold_starts,
       duration_sum_ms = m.duration_sum_ms + excluded.duration_sum_ms,
       duration_min_ms = least(m.duration_min_ms, excluded.duration_min_ms),
       duration_max_ms = greatest(m.duration_max_ms, excluded.duration_max_ms),
       durations = add_counts(m.durations, excluded.durations),
       gb_seconds = m.gb_seconds + excluded.gb_seconds;

-- name: points -- from the table of minutes or from that of hours
WITH found AS (
    SELECT date_bin(%(step)s, bucket, 'epoch') AS ts, invocations, errors, cold_starts, duration_sum_ms, durations
      FROM metrics_minute
     WHERE %(minutes)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function_id)s
       AND bucket >= %(since)s AND bucket < %(until)s
     UNION ALL
    SELECT date_bin(%(step)s, bucket, 'epoch') AS ts, invocations, errors, cold_starts, duration_sum_ms, durations
      FROM metrics_hour
     WHERE NOT %(minutes)s AND tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function_id)s
       AND bucket >= %(since)s AND bucket < %(until)s
), sums AS (
    SELECT ts, sum(invocations)::bigint AS invocations, sum(errors)::bigint AS errors,
           sum(cold_starts)::bigint AS cold_starts, sum(duration_sum_ms) AS duration_sum_ms
      FROM found GROUP BY ts
), cells AS (
    SELECT ts, (place - 1)::int AS cell, sum(n)::bigint AS calls
      FROM found, unnest(durations) WITH ORDINALITY AS counts (n, place)
     WHERE n > 0
     GROUP BY ts, place
), durations AS (
    SELECT ts, array_agg(cell ORDER BY cell) AS cells, array_agg(calls ORDER BY cell) AS calls FROM cells GROUP BY ts
)
SELECT ts, invocations, errors, cold_starts, duration_sum_ms, cells, calls FROM sums JOIN durations USING (ts);

-- name: by_local_hour
SELECT (bucket AT TIME ZONE %(timezone)s)::date AS day, extract(hour FROM bucket AT TIME ZONE %(timezone)s)::int AS hour,
       sum(invocations)::bigint AS invocations, sum(errors)::bigint AS errors
  FROM metrics_hour
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND function_id = %(function_id)s
   AND bucket >= %(since)s AND bucket < %(until)s
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: function_id
SELECT id FROM functions WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s;
