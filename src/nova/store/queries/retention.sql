-- What is old goes, a batch at a time. Each statement removes at most `limit` rows; rows that somebody holds wait for the next round.

-- name: metrics_minute
DELETE FROM metrics_minute WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM metrics_minute WHERE bucket < %(before)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: metrics_hour
DELETE FROM metrics_hour WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM metrics_hour WHERE bucket < %(before)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: trace_spans
DELETE FROM trace_spans WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM trace_spans WHERE started_at < %(before)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: audit_logs
DELETE FROM audit_logs WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM audit_logs WHERE created_at < %(before)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: cluster_nodes -- processes that fell silent; one that still runs writes its row again
DELETE FROM cluster_nodes WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM cluster_nodes WHERE lease_until < %(before)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: schedule_runs -- what still waits is no history yet
DELETE FROM schedule_runs WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM schedule_runs WHERE scheduled_for < %(before)s AND status <> 'queued'
     LIMIT %(limit)s FOR UPDATE SKIP LOCKED));

-- name: idempotency_keys -- a key whose holder is alive stays
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys
     WHERE expires_at < %(before)s AND (state = 'done' OR lease_until IS NULL OR lease_until < %(before)s)
     LIMIT %(limit)s FOR UPDATE SKIP LOCKED));
