-- Workflows: definitions with their versions, runs with their nodes, what runs are told from outside, and approvals.
-- A run that has something to do, or waits for something, has a row of kind "run" in the table work, whose id is the run's.

-- A deleted workflow stays as long as it has runs; its name is free at once.
CREATE TABLE dag_workflows (
    id                  uuid PRIMARY KEY,
    tenant_id           text NOT NULL,
    namespace           text NOT NULL,
    name                text NOT NULL,
    description         text NOT NULL DEFAULT '',
    tags                jsonb NOT NULL DEFAULT '{}',
    max_concurrent_runs int NOT NULL DEFAULT 0,           -- 0: as many as come
    on_limit            text NOT NULL DEFAULT 'queue' CHECK (on_limit IN ('queue', 'reject')),
    on_failure          text NOT NULL DEFAULT 'cancel' CHECK (on_failure IN ('cancel', 'finish')),
    default_timeout_s   int,                              -- of a run; NULL: a year
    halted              boolean NOT NULL DEFAULT false,   -- no run begins
    active_version      int,                              -- what runs begin with; NULL: nothing was published
    next_version        int NOT NULL DEFAULT 1,
    etag                text NOT NULL,
    created_by          text NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    deleted_at          timestamptz
);
CREATE UNIQUE INDEX dag_workflows_name ON dag_workflows (tenant_id, namespace, name) WHERE deleted_at IS NULL;
CREATE INDEX dag_workflows_scope ON dag_workflows (tenant_id, namespace, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX dag_workflows_deleted ON dag_workflows (deleted_at) WHERE deleted_at IS NOT NULL;

-- Never changed once written.
CREATE TABLE dag_workflow_versions (
    workflow_id uuid NOT NULL REFERENCES dag_workflows (id) ON DELETE CASCADE,
    version     int NOT NULL,
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    definition  json NOT NULL,
    digest      text NOT NULL,                            -- of the definition: equal ones are one version
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workflow_id, version)
);

CREATE TABLE dag_runs (
    id            uuid PRIMARY KEY,
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    workflow_id   uuid NOT NULL REFERENCES dag_workflows (id),
    workflow_name text NOT NULL,
    version       int NOT NULL,
    key           text,                                   -- a caller's own name for the run: it begins once
    status        text NOT NULL CHECK (status IN ('pending', 'running', 'paused', 'compensating', 'succeeded', 'failed',
                                                  'cancelled', 'timed_out')),
    input         json NOT NULL,
    output        json,
    error         jsonb,                                  -- {type, message}
    ending        jsonb,                                  -- decided but not done: {status, error, compensate, cancel}
    generation    int NOT NULL DEFAULT 1,                 -- grows with every retry by hand
    depth         int NOT NULL DEFAULT 0,                 -- runs above this one
    parent_run_id uuid,
    parent_node   text,                                   -- node_key and item of the parent's node that waits
    parent_item   int,
    forked_from   uuid,
    caller        text NOT NULL,                          -- in whose name it runs
    source        text NOT NULL,                          -- api, run:<id>, schedule:<name>, subscription:<id> …
    traceparent   text,
    tracestate    text,
    deadline_at   timestamptz NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    finished_at   timestamptz
);
CREATE UNIQUE INDEX dag_runs_key ON dag_runs (tenant_id, namespace, workflow_id, key) WHERE key IS NOT NULL;
CREATE INDEX dag_runs_scope ON dag_runs (tenant_id, namespace, id DESC);
CREATE INDEX dag_runs_workflow ON dag_runs (workflow_id, id DESC);
CREATE INDEX dag_runs_active ON dag_runs (workflow_id, status, id) WHERE finished_at IS NULL;
CREATE INDEX dag_runs_parent ON dag_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX dag_runs_finished ON dag_runs (finished_at) WHERE finished_at IS NOT NULL;

-- What a node of a run has come to; there is no row for a node that nothing has happened to yet. node_key is the node's
-- path: charge, or both/1/mail for a node in the second branch of a parallel node. item is -1 for the node itself and counts
-- from 0 for what a map node calls.
CREATE TABLE dag_run_nodes (
    run_id             uuid NOT NULL REFERENCES dag_runs (id) ON DELETE CASCADE,
    node_key           text NOT NULL,
    item               int NOT NULL DEFAULT -1,
    tenant_id          text NOT NULL,
    namespace          text NOT NULL,
    status             text NOT NULL CHECK (status IN ('ready', 'running', 'waiting', 'succeeded', 'failed', 'skipped',
                                                       'cancelled')),
    attempt            int NOT NULL DEFAULT 0,            -- of this generation
    generation         int NOT NULL DEFAULT 1,            -- the run's, when this was written
    input              json,
    output             json,
    error              jsonb,                             -- {type, message}
    taken              int[],                             -- which of its edges it went on by, as they are numbered in it
    wake_at            timestamptz,                       -- a timer, or the next attempt
    child_run_id       uuid,
    completed_no       int,                               -- in which order nodes succeeded, for compensation
    compensation       text CHECK (compensation IN ('succeeded', 'failed')),
    compensation_error jsonb,
    revision           int NOT NULL,                      -- of the run, growing: what changed since one has looked
    started_at         timestamptz,
    finished_at        timestamptz,
    PRIMARY KEY (run_id, node_key, item)
);
CREATE INDEX dag_run_nodes_revision ON dag_run_nodes (run_id, revision);

-- Every call of a function that ended.
CREATE TABLE dag_node_attempts (
    run_id      uuid NOT NULL REFERENCES dag_runs (id) ON DELETE CASCADE,
    node_key    text NOT NULL,
    item        int NOT NULL DEFAULT -1,
    generation  int NOT NULL,
    attempt     int NOT NULL,
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    purpose     text NOT NULL DEFAULT 'call' CHECK (purpose IN ('call', 'compensation')),
    request_id  uuid NOT NULL,
    started_at  timestamptz NOT NULL,
    duration_ms float8 NOT NULL,
    error       jsonb,
    PRIMARY KEY (run_id, node_key, item, generation, purpose, attempt)
);

-- What a run is told from outside. Whoever writes one has locked the run's work row before, so no is in commit order for
-- each run. An event that no node waits for yet stays until one does.
CREATE TABLE dag_events (
    id          uuid PRIMARY KEY,
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    run_id      uuid NOT NULL REFERENCES dag_runs (id) ON DELETE CASCADE,
    no          bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    kind        text NOT NULL CHECK (kind IN ('event', 'cancel', 'pause', 'resume', 'approval', 'child')),
    key         text NOT NULL DEFAULT '',                 -- of the event; the approval's or the child's id
    payload     json NOT NULL DEFAULT 'null',
    sender      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    consumed_at timestamptz
);
CREATE INDEX dag_events_unread ON dag_events (run_id, no) WHERE consumed_at IS NULL;

CREATE TABLE approvals (
    id            uuid PRIMARY KEY,
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    run_id        uuid NOT NULL REFERENCES dag_runs (id) ON DELETE CASCADE,
    workflow_name text NOT NULL,
    node_key      text NOT NULL,
    title         text NOT NULL,
    form_schema   json,
    approvers     jsonb NOT NULL DEFAULT '[]',            -- subjects; empty: whoever may approve
    input         json NOT NULL,
    status        text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'approved', 'rejected', 'expired',
                                                                    'cancelled')),
    decided_by    text,
    comment       text,
    payload       json,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    decided_at    timestamptz
);
CREATE INDEX approvals_scope ON approvals (tenant_id, namespace, status, id DESC);
CREATE INDEX approvals_run ON approvals (run_id);

-- A tenant's runs in the order in which they are due. Each claim takes from every tenant.
CREATE INDEX work_runs ON work (tenant_id, run_at, id) WHERE kind = 'run';
