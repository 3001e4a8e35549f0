-- What begins runs of workflows and what they wait for: schedules, and messages of topics. Only new columns and one new table;
-- older code fires nothing for a schedule of a workflow but a failed instant.
-- min_code: 0014

ALTER TABLE schedules
    ADD COLUMN workflow_id uuid REFERENCES dag_workflows (id) ON DELETE CASCADE,  -- where target_type is workflow
    ADD COLUMN timeout_s int,                                                     -- of a run; NULL: the workflow's
    ADD COLUMN last_run_id uuid;                                                  -- as last_invocation_id
CREATE INDEX schedules_workflow ON schedules (workflow_id) WHERE workflow_id IS NOT NULL;
ALTER TABLE schedule_runs ADD COLUMN run_id uuid;                                 -- of a workflow

-- A node that waits for a message of a topic, or has got one. Written when the wait begins; who leads the duty reads on from
-- next_sequence.
CREATE TABLE dag_topic_waits (
    run_id        uuid NOT NULL REFERENCES dag_runs (id) ON DELETE CASCADE,
    node_key      text NOT NULL,
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    topic         text NOT NULL,
    filters       json NOT NULL,              -- as they are after the mapping
    since         timestamptz NOT NULL,       -- messages published before it do not count
    topic_id      uuid,                       -- which topic next_sequence and taken are of
    next_sequence bigint,                     -- NULL: nothing was read yet
    taken         bigint,                     -- the message that the node got; NULL: it waits
    PRIMARY KEY (run_id, node_key)
);
CREATE INDEX dag_topic_waits_open ON dag_topic_waits (run_id, node_key) WHERE taken IS NULL;

ALTER TABLE dag_events DROP CONSTRAINT dag_events_kind_check,
    ADD CONSTRAINT dag_events_kind_check
    CHECK (kind IN ('event', 'cancel', 'pause', 'resume', 'approval', 'child', 'message'));
