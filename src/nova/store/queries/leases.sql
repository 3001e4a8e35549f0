-- Who is in charge of each duty: see nova.work.leader. Times are the database's own, so that hosts with other clocks agree.

-- name: claim -- what nobody holds, or this owner held and let slip; never waits for whoever has the row locked
WITH wanted AS (
    SELECT unnest(%(duties)s::text[]) AS duty
), fresh AS (
    INSERT INTO leases (duty, owner, node, fence, until)
    SELECT duty, %(owner)s, %(node)s, 1, now() + make_interval(secs => %(lease_s)s) FROM wanted
    ON CONFLICT (duty) DO NOTHING
    RETURNING duty, fence
), free AS (
    SELECT l.duty FROM leases l JOIN wanted USING (duty)
    WHERE l.until <= now() OR l.owner = %(owner)s
    FOR UPDATE OF l SKIP LOCKED
), taken AS (
    UPDATE leases SET owner = %(owner)s, node = %(node)s, fence = leases.fence + 1, acquired_at = now(),
                      until = now() + make_interval(secs => %(lease_s)s)
    FROM free WHERE leases.duty = free.duty
    RETURNING leases.duty, leases.fence
)
SELECT duty, fence FROM fresh UNION ALL SELECT duty, fence FROM taken

-- name: renew
UPDATE leases SET until = now() + make_interval(secs => %(lease_s)s)
FROM unnest(%(duties)s::text[], %(fences)s::bigint[]) AS held (duty, fence)
WHERE leases.duty = held.duty AND leases.fence = held.fence AND leases.owner = %(owner)s
RETURNING leases.duty

-- name: release -- the row stays: it keeps the fence
WITH released AS (
    UPDATE leases SET until = now()
    WHERE duty = %(duty)s AND owner = %(owner)s AND fence = %(fence)s
    RETURNING duty
)
SELECT pg_notify(%(channel)s, duty) FROM released

-- name: hold -- KEY SHARE keeps claimers out until the commit, and lets renewals pass
SELECT set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true) AS held
FROM leases WHERE duty = %(duty)s AND owner = %(owner)s AND fence = %(fence)s
FOR KEY SHARE

-- name: leaders
SELECT duty, owner, node, fence, until, acquired_at FROM leases WHERE until > now() ORDER BY duty
