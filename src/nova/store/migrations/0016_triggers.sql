-- Triggers: what listens outside, how far it is, and how it does.

CREATE TABLE triggers (
    id               uuid PRIMARY KEY,
    tenant_id        text NOT NULL,
    namespace        text NOT NULL,
    name             text NOT NULL,
    type             text NOT NULL,
    target_type      text NOT NULL CHECK (target_type IN ('function', 'workflow', 'topic')),
    target           text NOT NULL,           -- its name; the target may come and go, events wait for it
    qualifier        text,
    enabled          boolean NOT NULL,
    config           jsonb NOT NULL,          -- with its secrets
    filters          jsonb NOT NULL,
    batch_size       int NOT NULL,
    batch_window_ms  int NOT NULL,
    max_inflight     int NOT NULL,
    on_error         text NOT NULL CHECK (on_error IN ('retry', 'dlq', 'drop')),
    max_attempts     int NOT NULL,
    revision         bigint NOT NULL DEFAULT 1,
    created_by       text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, namespace) REFERENCES namespaces (tenant_id, name) ON UPDATE CASCADE ON DELETE CASCADE,
    UNIQUE (tenant_id, namespace, name)
);
CREATE INDEX triggers_newest ON triggers (tenant_id, namespace, id DESC);
CREATE INDEX triggers_enabled ON triggers (id) WHERE enabled;

-- Written once a second while something happens: apart, so that nothing indexed is rewritten.
CREATE TABLE trigger_status (
    trigger_id       uuid PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    state            text NOT NULL DEFAULT 'starting',
    last_error       text,
    lag              bigint,
    received         bigint NOT NULL DEFAULT 0,
    processed        bigint NOT NULL DEFAULT 0,
    failed           bigint NOT NULL DEFAULT 0,
    last_event_at    timestamptz
) WITH (fillfactor = 50);

-- How far a source is that keeps its place with us. Only whoever is in charge of the trigger writes it.
CREATE TABLE trigger_offsets (
    trigger_id       uuid PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    position         bytea NOT NULL,
    updated_at       timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
