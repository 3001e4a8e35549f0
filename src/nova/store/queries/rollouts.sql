-- Rollouts. All times are the database's; a step is as old as the database says.

-- name: get
SELECT id::text AS id, alias, baseline, target, policy, status, step, weight, step_seq, history, created_by, created_at,
       ended_at, extract(epoch FROM now() - step_started_at)::float8 AS held_s
  FROM function_rollouts WHERE function_id = %(function_id)s;

-- name: running
SELECT f.tenant_id, f.namespace, f.name, f.id::text AS function_id,
       r.id::text AS id, r.alias, r.baseline, r.target, r.policy, r.status, r.step, r.weight, r.step_seq, r.history,
       r.created_by, r.created_at, r.ended_at, extract(epoch FROM now() - r.step_started_at)::float8 AS held_s,
       CASE WHEN r.alias = 'live' THEN f.live_version IS DISTINCT FROM r.baseline
            ELSE a.data -> 'split' IS DISTINCT FROM jsonb_build_object(r.baseline::text, 10000) END AS moved
  FROM function_rollouts r
  JOIN functions f ON f.id = r.function_id
  LEFT JOIN function_aliases a ON a.function_id = r.function_id AND a.name = r.alias
 WHERE r.status = 'running'
 ORDER BY r.function_id;

-- name: put
INSERT INTO function_rollouts (function_id, id, alias, baseline, target, policy, status, step, weight, step_seq, created_by)
VALUES (%(function_id)s, %(id)s, %(alias)s, %(baseline)s, %(target)s, %(policy)s, 'running', 0, %(weight)s,
        (SELECT coalesce(max(seq), 0) FROM invocation_logs WHERE function_id = %(function_id)s), %(created_by)s)
ON CONFLICT (function_id) DO UPDATE
   SET id = excluded.id, alias = excluded.alias, baseline = excluded.baseline, target = excluded.target,
       policy = excluded.policy, status = 'running', step = 0, weight = excluded.weight, step_seq = excluded.step_seq,
       step_started_at = now(), history = '[]', created_by = excluded.created_by, created_at = now(), ended_at = NULL;

-- name: step
UPDATE function_rollouts
   SET status = 'running', step = %(step)s, weight = %(weight)s, step_started_at = now(),
       step_seq = (SELECT coalesce(max(seq), 0) FROM invocation_logs WHERE function_id = %(function_id)s)
 WHERE function_id = %(function_id)s;

-- name: set_status
UPDATE function_rollouts
   SET status = %(status)s, weight = %(weight)s, ended_at = CASE WHEN %(ended)s THEN now() END
 WHERE function_id = %(function_id)s;

-- name: note
UPDATE function_rollouts
   SET history = (SELECT jsonb_agg(entry ORDER BY place)
                    FROM (SELECT entry, place
                            FROM jsonb_array_elements(
                                     history || jsonb_build_array(%(entry)s::jsonb || jsonb_build_object('at', now()))
                                 ) WITH ORDINALITY AS entries (entry, place)
                           ORDER BY place DESC
                           LIMIT %(keep)s) AS newest)
 WHERE function_id = %(function_id)s;

-- name: delete
DELETE FROM function_rollouts WHERE function_id = %(function_id)s;

-- name: counted
-- Calls that came by the alias, of both versions, whose records were committed after seq; a caller that left is no error.
SELECT version, count(*) AS calls,
       count(*) FILTER (WHERE NOT success AND error_kind IS DISTINCT FROM 'Nova.Cancelled') AS errors,
       cell_counts(coalesce(array_agg(width_bucket(duration_ms, %(bounds)s::float8[])) FILTER (WHERE NOT cold_start), '{}'))
           AS durations,
       max(seq) AS seq
  FROM invocation_logs
 WHERE function_id = %(function_id)s AND seq > %(after)s AND version IN (%(baseline)s, %(target)s)
   AND coalesce(qualifier, 'live') = %(alias)s
 GROUP BY version;

-- name: put_shadow
INSERT INTO function_shadows (function_id, id, policy, created_by)
VALUES (%(function_id)s, %(id)s, %(policy)s, %(created_by)s)
ON CONFLICT (function_id) DO UPDATE
   SET id = excluded.id, policy = excluded.policy, matched = 0, differed = 0, errors = 0, skipped = 0, uncompared = 0,
       primary_ms = 0, shadow_ms = 0, samples = '[]', created_by = excluded.created_by, created_at = now();

-- name: get_shadow
SELECT id::text AS id, policy, matched, differed, errors, skipped, uncompared, primary_ms, shadow_ms, samples, created_by,
       created_at
  FROM function_shadows WHERE function_id = %(function_id)s;

-- name: delete_shadow
DELETE FROM function_shadows WHERE function_id = %(function_id)s;

-- name: count_shadow
UPDATE function_shadows
   SET matched = matched + %(matched)s, differed = differed + %(differed)s, errors = errors + %(errors)s,
       skipped = skipped + %(skipped)s, uncompared = uncompared + %(uncompared)s,
       primary_ms = primary_ms + %(primary_ms)s, shadow_ms = shadow_ms + %(shadow_ms)s,
       samples = (SELECT coalesce(jsonb_agg(sample ORDER BY place), '[]')
                    FROM (SELECT sample, place
                            FROM jsonb_array_elements(%(samples)s::jsonb || samples)
                                 WITH ORDINALITY AS known (sample, place)
                           ORDER BY place
                           LIMIT %(keep)s) AS newest)
 WHERE function_id = %(function_id)s AND id = %(id)s;
