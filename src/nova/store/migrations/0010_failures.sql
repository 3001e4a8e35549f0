-- Calls by how they failed, newest first: those that succeeded are many, and nobody looks for them this way.
-- min_code: 0005
CREATE INDEX invocation_logs_failures ON invocation_logs (tenant_id, namespace, outcome, created_at DESC, id DESC)
    WHERE outcome <> 'success';
