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
