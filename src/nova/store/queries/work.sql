-- Work of every kind: see nova.work.queue. Jobs, the kind 'async', are claimed by jobs.sql; what says that it is not for them may
-- use indexes that they are not in. Times are the database's own, so that hosts with other clocks agree.

-- name: enqueue
INSERT INTO work (id, kind, tenant_id, namespace, subject, payload, run_at)
VALUES (%(id)s, %(kind)s, %(tenant)s, %(namespace)s, %(subject)s, %(payload)s,
        now() + make_interval(secs => %(delay_s)s))

-- name: withdraw
DELETE FROM work
WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND kind = %(kind)s AND subject = %(subject)s
  AND kind <> 'async'

-- name: claim
WITH due AS (
    SELECT id FROM work
    WHERE kind = %(kind)s AND kind <> 'async' AND run_at <= now() AND (lease_until IS NULL OR lease_until <= now())
    ORDER BY run_at, id LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
)
UPDATE work SET owner = %(owner)s, fence = fence + 1, attempt = attempt + 1, claimed_at = now(),
                lease_until = now() + make_interval(secs => %(lease_s)s)
FROM due WHERE work.id = due.id
RETURNING work.id, kind, tenant_id, namespace, subject, payload, attempt, fence

-- name: claim_turn -- one claimer of a kind at a time, so that the cap per tenant is exact
SELECT pg_advisory_xact_lock(hashtextextended('nova.work.' || %(kind)s, 0))

-- name: claim_capped -- the due row is checked again when it is locked: it may have been claimed since the snapshot
WITH busy AS (
    SELECT tenant_id, count(*) AS running FROM work
    WHERE kind = %(kind)s AND kind <> 'async' AND lease_until > now() GROUP BY tenant_id
), ranked AS (
    SELECT w.id, coalesce(b.running, 0) + row_number() OVER (PARTITION BY w.tenant_id ORDER BY w.run_at, w.id) AS place
    FROM work w LEFT JOIN busy b USING (tenant_id)
    WHERE w.kind = %(kind)s AND w.kind <> 'async' AND w.run_at <= now() AND (w.lease_until IS NULL OR w.lease_until <= now())
), due AS (
    SELECT w.id FROM work w JOIN ranked r USING (id)
    WHERE r.place <= %(per_tenant)s AND (w.lease_until IS NULL OR w.lease_until <= now())
    ORDER BY w.run_at, w.id LIMIT %(batch)s
    FOR UPDATE OF w SKIP LOCKED
)
UPDATE work SET owner = %(owner)s, fence = fence + 1, attempt = attempt + 1, claimed_at = now(),
                lease_until = now() + make_interval(secs => %(lease_s)s)
FROM due WHERE work.id = due.id
RETURNING work.id, kind, tenant_id, namespace, subject, payload, attempt, fence

-- name: next_due
SELECT extract(epoch FROM run_at - clock_timestamp())::float8 AS seconds FROM work
WHERE kind = %(kind)s AND kind <> 'async' AND run_at > now() AND run_at < 'infinity'
ORDER BY run_at LIMIT 1

-- name: heartbeat
UPDATE work SET lease_until = now() + make_interval(secs => %(lease_s)s)
FROM unnest(%(ids)s::uuid[], %(fences)s::bigint[]) AS held (id, fence)
WHERE work.id = held.id AND work.fence = held.fence AND work.owner = %(owner)s
RETURNING work.id, work.fence

-- name: finish
DELETE FROM work WHERE id = %(id)s AND owner = %(owner)s AND fence = %(fence)s

-- name: hold -- proves inside a transaction that the lease is still ours, and keeps it so until the commit
SELECT 1 AS held FROM work WHERE id = %(id)s AND owner = %(owner)s AND fence = %(fence)s FOR UPDATE

-- name: release
UPDATE work SET owner = NULL, lease_until = NULL, claimed_at = NULL, attempt = attempt - %(forgive)s,
                run_at = now() + make_interval(secs => %(delay_s)s)
WHERE id = %(id)s AND owner = %(owner)s AND fence = %(fence)s

-- name: release_all -- of what nobody began: due at once, no attempt
UPDATE work SET owner = NULL, lease_until = NULL, claimed_at = NULL, attempt = attempt - 1
FROM unnest(%(ids)b::uuid[], %(fences)b::bigint[]) AS held (id, fence)
WHERE work.id = held.id AND work.fence = held.fence AND work.owner = %(owner)s

-- name: notify
SELECT pg_notify(channel, payload) FROM unnest(%(channels)s::text[], %(payloads)s::text[]) AS n (channel, payload)
