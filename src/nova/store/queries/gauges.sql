-- Numbers that belong to no process but to the whole platform, as they are now.

-- name: backlog
SELECT tenant_id, status, sum(jobs)::bigint AS jobs
  FROM async_counts
 WHERE (%(tenants)s::text[] IS NULL OR tenant_id = ANY (%(tenants)s))
 GROUP BY tenant_id, status
HAVING sum(jobs) > 0
 ORDER BY tenant_id, status;

-- name: leaders
SELECT duty, node, until > now() AS held FROM leases ORDER BY duty;

-- name: nodes
SELECT plane, CASE WHEN lease_until > now() THEN state ELSE 'gone' END AS state, count(*) AS nodes
  FROM cluster_nodes
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: subscriptions -- those that are furthest behind
SELECT s.tenant_id, t.name AS topic, s.name AS subscription, greatest(0, h.last_sequence - s.cursor) AS lag
  FROM event_subscriptions s
  JOIN event_topics t ON t.id = s.topic_id
  JOIN event_heads h ON h.topic_id = s.topic_id
 WHERE %(tenants)s::text[] IS NULL OR s.tenant_id = ANY (%(tenants)s)
 ORDER BY lag DESC, s.id
 LIMIT %(limit)s;

-- name: dead_messages
SELECT count(*) AS dead FROM event_deliveries
 WHERE status = 'dlq' AND (%(tenants)s::text[] IS NULL OR tenant_id = ANY (%(tenants)s));

-- name: rollup_lag -- the oldest record that no time series counts yet
SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS seconds
  FROM (SELECT created_at FROM invocation_logs
         WHERE seq > (SELECT seq FROM rollup_positions WHERE name = 'calls')
         ORDER BY seq LIMIT 1) AS next;
