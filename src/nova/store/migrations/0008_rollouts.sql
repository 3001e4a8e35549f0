-- Rollouts, and shadow traffic. Only new tables: code that does not know them works as before.
-- min_code: 0005

-- The rollout of a function: the one that runs, or the last that ran.
CREATE TABLE function_rollouts (
    function_id      uuid PRIMARY KEY REFERENCES functions (id) ON DELETE CASCADE,
    id               uuid NOT NULL,
    alias            text NOT NULL,
    baseline         int NOT NULL,           -- what the alias named when it began
    target           int NOT NULL,
    policy           jsonb NOT NULL,
    status           text NOT NULL
        CHECK (status IN ('running', 'paused', 'promoted', 'rolled_back', 'aborted')),
    step             int NOT NULL,           -- counts from 0
    weight           int NOT NULL,           -- of the target, in hundredths of a percent
    step_seq         bigint NOT NULL,        -- call records after this one belong to the step
    step_started_at  timestamptz NOT NULL DEFAULT now(),
    history          jsonb NOT NULL DEFAULT '[]',
    created_by       text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz
);
CREATE INDEX function_rollouts_running ON function_rollouts (function_id) WHERE status = 'running';

CREATE TABLE function_shadows (
    function_id   uuid PRIMARY KEY REFERENCES functions (id) ON DELETE CASCADE,
    id            uuid NOT NULL,             -- of this policy; what was counted for an earlier one is not added
    policy        jsonb NOT NULL,
    matched       bigint NOT NULL DEFAULT 0,
    differed      bigint NOT NULL DEFAULT 0,
    errors        bigint NOT NULL DEFAULT 0, -- copies that the platform could not run
    skipped       bigint NOT NULL DEFAULT 0, -- copies that max_inflight left out
    uncompared    bigint NOT NULL DEFAULT 0, -- copies that ran without anything to compare
    primary_ms    double precision NOT NULL DEFAULT 0,
    shadow_ms     double precision NOT NULL DEFAULT 0,
    samples       jsonb NOT NULL DEFAULT '[]',
    created_by    text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
