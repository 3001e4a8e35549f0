-- Asynchronous invocations, steered: priorities, places (so many at once for a key or a function), pace, debouncing, callbacks,
-- and how long a result is kept. Code that does not know them runs such jobs as any others.
-- min_code: 0011
ALTER TABLE async_invocations
    ADD COLUMN priority          smallint NOT NULL DEFAULT 1, -- 0 high, 1 normal, 2 low
    ADD COLUMN concurrency_key   text,
    ADD COLUMN concurrency_limit int,        -- jobs with this key that may run at once
    ADD COLUMN callback_url      text,       -- is told how the job ended, beside the function's destinations
    ADD COLUMN keep_s            int,        -- how long it is kept after its end; NULL: as the platform does
    ADD COLUMN keep_until        timestamptz;
CREATE INDEX async_invocations_keep ON async_invocations (keep_until) WHERE keep_until IS NOT NULL;
CREATE INDEX async_invocations_key ON async_invocations (tenant_id, namespace, concurrency_key, id DESC)
    WHERE concurrency_key IS NOT NULL;

ALTER TABLE work ADD COLUMN priority smallint NOT NULL DEFAULT 1;
-- A tenant's jobs in the order in which they are taken. A claim changes none of its columns.
CREATE INDEX work_async_turn ON work (tenant_id, priority, run_at, id) WHERE kind = 'async';
DROP INDEX work_async;

-- One row for each function whose jobs are held to a number or a pace: whoever decides about them locks it.
CREATE TABLE async_paces (
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    function_id uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    next_at     timestamptz NOT NULL DEFAULT '-infinity', -- when the pace allows the next one
    PRIMARY KEY (tenant_id, namespace, function_id)
);

-- Jobs that were met at such a gate: told when their turn is (paced), waiting for a place, or holding one.
CREATE TABLE async_places (
    job_id      uuid PRIMARY KEY,
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    function_id uuid NOT NULL,
    key         text NOT NULL,               -- empty: none of its own
    key_limit   int NOT NULL,
    state       text NOT NULL CHECK (state IN ('paced', 'waiting', 'holding')),
    priority    smallint NOT NULL,
    due         timestamptz NOT NULL         -- when it was due first: the order among those that wait
);
CREATE INDEX async_places_turn ON async_places (tenant_id, namespace, function_id, state, priority, due, job_id);
CREATE INDEX async_places_key ON async_places (tenant_id, namespace, function_id, key, state);

-- The job that later requests with the same debounce key change, as long as nobody has taken it.
CREATE TABLE async_debounces (
    tenant_id   text NOT NULL,
    namespace   text NOT NULL,
    function_id uuid NOT NULL,
    key         text NOT NULL,
    job_id      uuid NOT NULL REFERENCES async_invocations (id) ON DELETE CASCADE,
    began_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, namespace, function_id, key)
);
CREATE INDEX async_debounces_job ON async_debounces (job_id);
