-- Two indexes are for lists only. A plan that was made while their table was empty took them for a key too, whose first columns
-- they share, and read all of an execution's steps for each step, and all functions of a namespace for each job, until the
-- database next counted its rows. Being partial they serve only statements that say what is always true of every row.
-- min_code: 0015

DROP INDEX durable_operations_place;
CREATE INDEX durable_operations_place ON durable_operations (execution_id, place) WHERE place >= 0;
DROP INDEX functions_newest;
CREATE INDEX functions_newest ON functions (tenant_id, namespace, id DESC) WHERE id > '00000000-0000-0000-0000-000000000000';

-- Whoever adds an operation has the row of its execution locked, so a check for each of them finds nothing.
ALTER TABLE durable_operations DROP CONSTRAINT durable_operations_execution_id_fkey;
CREATE FUNCTION durable_operations_of_execution() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM durable_operations WHERE execution_id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER durable_executions_deleted AFTER DELETE ON durable_executions
    FOR EACH ROW EXECUTE FUNCTION durable_operations_of_execution();
