-- Most of what a job or a call record costs the database is the upkeep of indexes.
-- min_code: 0017

-- What is asked of all kinds of work but jobs, which have indexes of their own, no longer has them in it.
ALTER TABLE work DROP CONSTRAINT work_tenant_id_namespace_kind_subject_key;
CREATE UNIQUE INDEX work_subject ON work (tenant_id, namespace, kind, subject) WHERE kind <> 'async';
DROP INDEX work_claim;
CREATE INDEX work_claim ON work (kind, run_at, id) WHERE kind <> 'async';
CREATE INDEX work_async_parked ON work (id) WHERE kind = 'async' AND run_at = 'infinity';

-- The end of a job changes no indexed column, so that with room on its page it touches no index. Old jobs are found by their
-- ids, which are in the order of time. Every dead letter has an error, and of other jobs few have.
ALTER TABLE async_invocations ADD CONSTRAINT async_invocations_dead_error CHECK (status <> 'dlq' OR error IS NOT NULL) NOT VALID;
CREATE INDEX async_invocations_dead ON async_invocations (tenant_id, namespace, id) WHERE error IS NOT NULL;
DROP INDEX async_invocations_dlq;
DROP INDEX async_invocations_finished;
ALTER TABLE async_invocations SET (fillfactor = 40);

-- Lists are newest first, and an index is read backwards as well as forwards. Written it is not: what comes at its end costs a
-- half of what comes at its beginning, and leaves full pages behind.
DROP INDEX async_invocations_scope, async_invocations_function, async_invocations_key;
CREATE INDEX async_invocations_scope ON async_invocations (tenant_id, namespace, id);
CREATE INDEX async_invocations_function ON async_invocations (tenant_id, namespace, function_name, id);
CREATE INDEX async_invocations_key ON async_invocations (tenant_id, namespace, concurrency_key, id)
    WHERE concurrency_key IS NOT NULL;
DROP INDEX invocation_logs_func_time, invocation_logs_scope_time, invocation_logs_failures;
CREATE INDEX invocation_logs_func_time ON invocation_logs (function_id, created_at, id);
CREATE INDEX invocation_logs_scope_time ON invocation_logs (tenant_id, namespace, created_at, id);
CREATE INDEX invocation_logs_failures ON invocation_logs (tenant_id, namespace, outcome, created_at, id)
    WHERE outcome <> 'success';
DROP INDEX dag_runs_scope, dag_runs_workflow, durable_executions_list, bus_outbox_topic;
CREATE INDEX dag_runs_scope ON dag_runs (tenant_id, namespace, id);
CREATE INDEX dag_runs_workflow ON dag_runs (workflow_id, id);
CREATE INDEX durable_executions_list ON durable_executions (tenant_id, namespace, function_name, id);
CREATE INDEX bus_outbox_topic ON bus_outbox (topic_id, id);
