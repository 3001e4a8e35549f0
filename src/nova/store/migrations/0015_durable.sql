-- Durable executions: calls that outlive their instances, and the operations that each of them has recorded.
-- min_code: 0005

CREATE TABLE durable_executions (
    id            uuid PRIMARY KEY,
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    function_id   uuid NOT NULL,
    function_name text NOT NULL,
    version       int NOT NULL,             -- the one that began it; no other ever runs it
    name          text,                     -- the caller's own; a second start with it is the first one
    status        text NOT NULL DEFAULT 'running'
                  CHECK (status IN ('running', 'suspended', 'completed', 'failed', 'cancelled')),
    input         text NOT NULL,
    output        text,
    error         text,
    caller        text NOT NULL,            -- the subject in whose name it runs
    source        text NOT NULL,            -- what began it, as calls tell it
    chain         text[] NOT NULL DEFAULT '{}',
    traceparent   text,
    tracestate    text,
    epoch         bigint NOT NULL DEFAULT 0, -- the fence of the run that owns it; what an older one writes is refused
    rev           bigint NOT NULL DEFAULT 0, -- grows with each change of an operation
    steps         int NOT NULL DEFAULT 0,
    lost          int NOT NULL DEFAULT 0,   -- runs in a row that ended without having got any further
    fresh         boolean NOT NULL DEFAULT false, -- something came in since the run began
    wake_at       timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    deadline_at   timestamptz NOT NULL,
    ended_at      timestamptz,
    UNIQUE (tenant_id, namespace, function_id, name)
);
CREATE INDEX durable_executions_list ON durable_executions (tenant_id, namespace, function_name, id DESC);
CREATE INDEX durable_executions_ended ON durable_executions (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE durable_operations (
    execution_id  uuid NOT NULL REFERENCES durable_executions ON DELETE CASCADE,
    id            text NOT NULL,            -- its place in the code, as the code's library names it
    place         bigint NOT NULL,          -- in the order of recording
    rev           bigint NOT NULL,
    parent_id     text,
    name          text,
    type          text NOT NULL,
    sub_type      text,
    status        text NOT NULL,
    attempt       int NOT NULL DEFAULT 0,
    result        text,
    error         text,
    replay        boolean NOT NULL DEFAULT false, -- of a context: its result has to be made again from its children
    wake_at       timestamptz,              -- when time changes its status
    timeout_at    timestamptz,
    heartbeat_s   float8,
    call_id       uuid,                     -- the work that calls another function for it
    started_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    PRIMARY KEY (execution_id, id)
);
CREATE INDEX durable_operations_place ON durable_operations (execution_id, place);

CREATE TABLE durable_events (
    execution_id  uuid NOT NULL REFERENCES durable_executions ON DELETE CASCADE,
    id            uuid NOT NULL,
    name          text NOT NULL,
    payload       text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (execution_id, id)
);
