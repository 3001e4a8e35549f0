-- Schedules: what is called when, and the history of it.

CREATE TABLE schedules (
    id                 uuid PRIMARY KEY,
    tenant_id          text NOT NULL,
    namespace          text NOT NULL,
    target_type        text NOT NULL,           -- function
    target             text NOT NULL,           -- its name
    function_id        uuid REFERENCES functions (id) ON DELETE CASCADE,
    name               text NOT NULL,
    cron_expression    text NOT NULL,
    timezone           text NOT NULL,
    input              text,                    -- JSON; NULL: an envelope that tells of the firing
    qualifier          text,
    enabled            boolean NOT NULL,
    overlap_policy     text NOT NULL CHECK (overlap_policy IN ('skip', 'queue', 'allow', 'cancel_previous')),
    catch_up           text NOT NULL CHECK (catch_up IN ('none', 'last', 'all')),
    catch_up_window_s  int NOT NULL,
    jitter_s           int NOT NULL,
    start_at           timestamptz,
    end_at             timestamptz,
    max_attempts       int,
    anchor             timestamptz NOT NULL,    -- intervals are counted from here
    next_run_at        timestamptz,             -- NULL: paused, or there is none any more
    due_at             timestamptz,             -- the same with its jitter
    last_run_at        timestamptz,
    last_status        text,
    last_invocation_id uuid,
    created_by         text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    CHECK ((next_run_at IS NULL) = (due_at IS NULL)),
    UNIQUE (tenant_id, namespace, target_type, target, name)
);
CREATE INDEX schedules_due ON schedules (due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX schedules_newest ON schedules (tenant_id, namespace, id DESC);
CREATE INDEX schedules_function ON schedules (function_id);

-- One row for each instant that something was decided about. The key is the lock: an instant fires once.
CREATE TABLE schedule_runs (
    schedule_id    uuid NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
    scheduled_for  timestamptz NOT NULL,
    fired_at       timestamptz,
    status         text NOT NULL CHECK (status IN ('queued', 'fired', 'skipped', 'missed', 'failed')),
    reason         text NOT NULL DEFAULT '',
    catch_up       boolean NOT NULL DEFAULT false,
    invocation_id  uuid,
    PRIMARY KEY (schedule_id, scheduled_for)
);
CREATE INDEX schedule_runs_queued ON schedule_runs (schedule_id, scheduled_for) WHERE status = 'queued';
CREATE INDEX schedule_runs_age ON schedule_runs (scheduled_for);

-- The few functions that keep instances ready are found without reading all the others.
CREATE INDEX functions_kept_ready ON functions (id)
    WHERE (data -> 'recorded' ->> 'min_replicas')::int > 0;
