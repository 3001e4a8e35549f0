-- Asynchronous invocations: calls that nobody waits for, their dead letters, idempotency keys, and the outbox of what is
-- sent on when a job ends. The queue itself is the table work; a job's row there has the job's own id.

-- A job. Status is queued until it has ended; it reads as running while its work row is under a lease.
CREATE TABLE async_invocations (
    id              uuid PRIMARY KEY,
    tenant_id       text NOT NULL,
    namespace       text NOT NULL,
    function_id     uuid NOT NULL,           -- no foreign key: a job outlives its function, as a dead letter
    function_name   text NOT NULL,
    qualifier       text,
    payload         json NOT NULL,           -- not jsonb: any valid document, as it was sent
    status          text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'succeeded', 'dlq', 'cancelled')),
    paused          boolean NOT NULL DEFAULT false,
    attempt         int NOT NULL DEFAULT 0,  -- of the run that ended; while queued the work row counts
    max_attempts    int NOT NULL,
    backoff_base_ms int NOT NULL,
    backoff_max_ms  int NOT NULL,
    max_age_s       int NOT NULL,
    depth           int NOT NULL DEFAULT 0,  -- how many jobs caused one another before this one
    generation      int NOT NULL DEFAULT 0,  -- grows with every retry by hand
    source          text NOT NULL,           -- api, schedule:<name>, async:<id>
    caller          text NOT NULL,           -- who asked, as the identity's subject
    traceparent     text,
    tracestate      text,
    idempotency_key text,
    attempts        jsonb NOT NULL DEFAULT '[]', -- {no, started_at, request_id, error, duration_ms}
    request_id      uuid,                    -- of the attempt that ended the job
    version         int,
    output          json,
    error           jsonb,                   -- {type, message, stack}
    created_at      timestamptz NOT NULL DEFAULT now(),
    queued_at       timestamptz NOT NULL DEFAULT now(), -- when its age began to count
    next_run_at     timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz
);
CREATE INDEX async_invocations_scope ON async_invocations (tenant_id, namespace, id DESC);
CREATE INDEX async_invocations_function ON async_invocations (tenant_id, namespace, function_name, id DESC);
CREATE INDEX async_invocations_dlq ON async_invocations (tenant_id, namespace, id DESC) WHERE status = 'dlq';
CREATE INDEX async_invocations_finished ON async_invocations (finished_at) WHERE finished_at IS NOT NULL;

ALTER TABLE work ADD COLUMN claimed_at timestamptz;
-- A claim changes no indexed column, so with room on its page it touches no index.
ALTER TABLE work SET (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- A tenant's jobs in the order in which they are due. Each claim takes from every tenant.
CREATE INDEX work_async ON work (tenant_id, run_at, id) WHERE kind = 'async';

-- Functions whose jobs wait until somebody resumes them.
CREATE TABLE async_pauses (
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    function_id uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    paused_by   text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, namespace, function_id)
);

-- The one switch for the whole platform.
CREATE TABLE async_gate (
    id          boolean PRIMARY KEY DEFAULT true CHECK (id),
    paused      boolean NOT NULL DEFAULT false,
    reason      text NOT NULL DEFAULT '',
    changed_by  text NOT NULL DEFAULT '',
    changed_at  timestamptz NOT NULL DEFAULT now()
);
INSERT INTO async_gate DEFAULT VALUES;

-- How many jobs there are of each status, and how many came and ended in each ten seconds. Several rows for one number
-- (shard), so that writers do not wait for one another; the sum counts.
CREATE TABLE async_counts (
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    status      text NOT NULL,
    shard       int NOT NULL,
    jobs        bigint NOT NULL,
    PRIMARY KEY (tenant_id, namespace, status, shard)
) WITH (fillfactor = 50);
CREATE TABLE async_rates (
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    bucket      timestamptz NOT NULL,
    shard       int NOT NULL,
    enqueued    bigint NOT NULL,
    finished    bigint NOT NULL,
    PRIMARY KEY (tenant_id, namespace, bucket, shard)
) WITH (fillfactor = 50);
CREATE INDEX async_rates_bucket ON async_rates (bucket);

-- Counting belongs to the table: whoever adds, ends, retries or deletes jobs cannot forget it. Once for each statement.
CREATE FUNCTION async_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO async_counts AS c
        SELECT tenant_id, namespace, status, pg_backend_pid() % 16, count(*) FROM added GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (tenant_id, namespace, status, shard) DO UPDATE SET jobs = c.jobs + excluded.jobs;
        INSERT INTO async_rates AS r
        SELECT tenant_id, namespace, date_bin('10 s', clock_timestamp(), '2000-01-01 00:00+00'), pg_backend_pid() % 16,
               count(*), 0
        FROM added GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (tenant_id, namespace, bucket, shard) DO UPDATE SET enqueued = r.enqueued + excluded.enqueued;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO async_counts AS c
        SELECT tenant_id, namespace, status, pg_backend_pid() % 16, sum(n)
        FROM (SELECT tenant_id, namespace, status, 1 AS n FROM added
              UNION ALL SELECT tenant_id, namespace, status, -1 FROM removed) AS moved
        GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 1, 2, 3
        ON CONFLICT (tenant_id, namespace, status, shard) DO UPDATE SET jobs = c.jobs + excluded.jobs;
        INSERT INTO async_rates AS r
        SELECT a.tenant_id, a.namespace, date_bin('10 s', clock_timestamp(), '2000-01-01 00:00+00'),
               pg_backend_pid() % 16, 0, count(*)
        FROM added a JOIN removed b USING (id) WHERE a.status <> 'queued' AND b.status = 'queued'
        GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (tenant_id, namespace, bucket, shard) DO UPDATE SET finished = r.finished + excluded.finished;
    ELSE
        INSERT INTO async_counts AS c
        SELECT tenant_id, namespace, status, pg_backend_pid() % 16, -count(*)
        FROM removed GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (tenant_id, namespace, status, shard) DO UPDATE SET jobs = c.jobs + excluded.jobs;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER async_count_added AFTER INSERT ON async_invocations
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION async_count();
CREATE TRIGGER async_count_changed AFTER UPDATE ON async_invocations
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION async_count();
CREATE TRIGGER async_count_removed AFTER DELETE ON async_invocations
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION async_count();

-- A caller's own name for a request, so that sending it again does nothing twice. The realm says what it is a request for.
CREATE TABLE idempotency_keys (
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    realm        text NOT NULL,              -- invoke/<function>, async/<function>
    key          text NOT NULL,
    request_hash bytea NOT NULL,             -- of what was asked for
    state        text NOT NULL CHECK (state IN ('running', 'done')),
    subject      uuid NOT NULL,              -- the request, or the job, that holds the key
    attempt      int NOT NULL DEFAULT 1,
    answer       json,                       -- what a repetition is told
    lease_until  timestamptz,                -- while running: whoever holds the key is alive until then
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, namespace, realm, key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- What has to leave the platform's database because something ended; written in the transaction that ended it.
CREATE TABLE event_outbox (
    id           uuid PRIMARY KEY,
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    source       text NOT NULL,              -- what caused it, once: async/<job>/<generation>
    function_id  uuid NOT NULL,              -- whose destination it is
    target_type  text NOT NULL CHECK (target_type IN ('function', 'webhook')),
    target       text NOT NULL,
    caller       text NOT NULL,              -- in whose name the job ran
    depth        int NOT NULL DEFAULT 0,
    event        json NOT NULL,              -- a CloudEvents 1.0 object
    status       text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead')),
    attempts     int NOT NULL DEFAULT 0,
    error        text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    UNIQUE (tenant_id, namespace, source)
);
CREATE INDEX event_outbox_finished ON event_outbox (finished_at) WHERE finished_at IS NOT NULL;

-- What webhooks of a function are signed with.
CREATE TABLE webhook_secrets (
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    function_id uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    secret      bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, namespace, function_id)
);
