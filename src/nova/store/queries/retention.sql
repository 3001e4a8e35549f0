-- What is old goes, a batch at a time. Each statement removes at most `limit` rows; rows that somebody holds wait for the next round.
-- Where an index keeps rows by age the oldest go first, so that no batch reads past what the one before it has removed. The tables
-- of series and spans are in the order of their age by themselves: there each batch begins where the last one ended (`after`).

-- name: metrics_minute
WITH gone AS (
    DELETE FROM metrics_minute WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM metrics_minute WHERE ctid > %(after)s::tid AND bucket < %(before)s
         LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    RETURNING ctid AS place
) SELECT count(*) AS rows, max(place)::text AS upto FROM gone;

-- name: metrics_hour
WITH gone AS (
    DELETE FROM metrics_hour WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM metrics_hour WHERE ctid > %(after)s::tid AND bucket < %(before)s
         LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    RETURNING ctid AS place
) SELECT count(*) AS rows, max(place)::text AS upto FROM gone;

-- name: trace_spans
WITH gone AS (
    DELETE FROM trace_spans WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM trace_spans WHERE ctid > %(after)s::tid AND started_at < %(before)s
         LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    RETURNING ctid AS place
) SELECT count(*) AS rows, max(place)::text AS upto FROM gone;

-- name: audit_logs -- by tenant, as its index has them
WITH RECURSIVE tenants AS (
    (SELECT tenant_id FROM audit_logs ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT a.tenant_id FROM audit_logs a WHERE a.tenant_id > t.tenant_id ORDER BY a.tenant_id LIMIT 1)
      FROM tenants t WHERE t.tenant_id IS NOT NULL
)
DELETE FROM audit_logs WHERE ctid = ANY (ARRAY(
    SELECT a.ctid FROM tenants t JOIN LATERAL (
        SELECT ctid FROM audit_logs WHERE tenant_id = t.tenant_id AND created_at < %(before)s
         ORDER BY created_at LIMIT %(limit)s) a ON true
     LIMIT %(limit)s));

-- name: cluster_nodes -- processes that fell silent; one that still runs writes its row again
DELETE FROM cluster_nodes WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM cluster_nodes WHERE lease_until < %(before)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: schedule_runs -- what still waits is no history yet
DELETE FROM schedule_runs WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM schedule_runs WHERE scheduled_for < %(before)s AND status <> 'queued'
     ORDER BY scheduled_for LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: idempotency_keys -- a key whose holder is alive stays
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys
     WHERE expires_at < %(before)s AND (state = 'done' OR lease_until IS NULL OR lease_until < %(before)s)
     ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: jobs_kept_until -- those that said themselves how long they are kept, with the keys they hold
WITH gone AS (
    DELETE FROM async_invocations
    WHERE id = ANY (ARRAY(SELECT id FROM async_invocations WHERE keep_until < now() ORDER BY keep_until LIMIT %(limit)s))
      AND status <> 'queued'
    RETURNING id, tenant_id, namespace, 'async/' || function_name AS realm, idempotency_key
), keys AS (
    DELETE FROM idempotency_keys k USING gone g
    WHERE k.tenant_id = g.tenant_id AND k.namespace = g.namespace AND k.realm = g.realm AND k.key = g.idempotency_key
      AND k.subject = g.id
) SELECT count(*) AS rows FROM gone;

-- name: jobs -- in the order of their ids, which is that of their beginnings: none ends before it begins
WITH gone AS (
    DELETE FROM async_invocations
    WHERE id = ANY (ARRAY(
        SELECT id FROM async_invocations
        WHERE id > %(after)s::uuid AND id < %(first)s::uuid AND keep_until IS NULL
          AND ((status IN ('succeeded', 'cancelled') AND finished_at < %(before_ok)s)
               OR (status = 'dlq' AND finished_at < %(before_dlq)s))
        ORDER BY id LIMIT %(limit)s))
      AND status <> 'queued'
    RETURNING id, tenant_id, namespace, 'async/' || function_name AS realm, idempotency_key
), keys AS (
    DELETE FROM idempotency_keys k USING gone g
    WHERE k.tenant_id = g.tenant_id AND k.namespace = g.namespace AND k.realm = g.realm AND k.key = g.idempotency_key
      AND k.subject = g.id
) SELECT count(*) AS rows, max(id::text COLLATE "C") AS upto FROM gone;
