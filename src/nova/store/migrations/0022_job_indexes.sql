-- Most of what a job costs the database is the upkeep of indexes.
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
