-- Lists are newest first, and an index is read backwards as well as forwards. Written it is not: what comes at its end costs a
-- half of what comes at its beginning, and leaves full pages behind.
-- min_code: 0017
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
