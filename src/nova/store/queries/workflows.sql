-- Workflows and their versions. Ids are UUIDv7, so ordering by id is ordering by creation.

-- name: insert
INSERT INTO dag_workflows (id, tenant_id, namespace, name, description, tags, max_concurrent_runs, on_limit, on_failure,
                           default_timeout_s, halted, etag, created_by)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(description)s, %(tags)s, %(max_concurrent_runs)s, %(on_limit)s,
        %(on_failure)s, %(default_timeout_s)s, %(halted)s, %(etag)s, %(created_by)s)
ON CONFLICT (tenant_id, namespace, name) WHERE deleted_at IS NULL DO NOTHING
RETURNING *;

-- name: get
SELECT * FROM dag_workflows
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s AND deleted_at IS NULL;

-- name: lock
SELECT * FROM dag_workflows
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = %(name)s AND deleted_at IS NULL
   FOR UPDATE;

-- name: list
SELECT * FROM dag_workflows
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND deleted_at IS NULL
   AND (%(after)s::uuid IS NULL OR id < %(after)s::uuid)
   AND (%(q)s::text IS NULL OR strpos(lower(name), lower(%(q)s)) > 0 OR strpos(lower(description), lower(%(q)s)) > 0)
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: update
UPDATE dag_workflows
   SET description = %(description)s, tags = %(tags)s, max_concurrent_runs = %(max_concurrent_runs)s,
       on_limit = %(on_limit)s, on_failure = %(on_failure)s, default_timeout_s = %(default_timeout_s)s,
       halted = %(halted)s, etag = %(etag)s, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING *;

-- name: delete -- the row stays until its runs have had their time
UPDATE dag_workflows SET deleted_at = now(), etag = %(etag)s WHERE id = %(id)s::uuid;

-- name: hold_schedules -- before the workflow itself: whoever fires them locks them in this order
SELECT s.id FROM schedules s
  JOIN dag_workflows w ON w.id = s.workflow_id
 WHERE w.tenant_id = %(tenant)s AND w.namespace = %(namespace)s AND w.name = %(name)s AND w.deleted_at IS NULL
 ORDER BY s.due_at, s.id
   FOR UPDATE OF s;

-- name: delete_schedules
DELETE FROM schedules WHERE workflow_id = %(id)s::uuid;

-- name: activate
UPDATE dag_workflows
   SET active_version = %(version)s, etag = %(etag)s, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING *;

-- name: take_number
UPDATE dag_workflows
   SET next_version = next_version + 1, etag = %(etag)s, updated_at = now()
 WHERE id = %(id)s::uuid
RETURNING *;

-- name: same -- a version with this definition
SELECT version FROM dag_workflow_versions WHERE workflow_id = %(id)s::uuid AND digest = %(digest)s;

-- name: insert_version
INSERT INTO dag_workflow_versions (workflow_id, version, tenant_id, namespace, definition, digest, created_by)
VALUES (%(id)s::uuid, %(version)s, %(tenant)s, %(namespace)s, %(definition)s, %(digest)s, %(created_by)s);

-- name: version
SELECT version, definition, json_array_length(definition -> 'nodes') AS nodes, created_by, created_at
  FROM dag_workflow_versions
 WHERE workflow_id = %(id)s::uuid AND version = %(version)s;

-- name: versions
SELECT version, json_array_length(definition -> 'nodes') AS nodes, created_by, created_at
  FROM dag_workflow_versions
 WHERE workflow_id = %(id)s::uuid AND (%(before)s::int IS NULL OR version < %(before)s)
 ORDER BY version DESC
 LIMIT %(limit)s;

-- name: active_runs -- by id, beginning after one
SELECT id::text AS id FROM dag_runs
 WHERE workflow_id = %(id)s::uuid AND finished_at IS NULL AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid)
 ORDER BY id
 LIMIT %(limit)s;

-- name: existing_functions
SELECT name FROM functions
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = ANY (%(names)s::text[]);

-- name: existing_topics
SELECT name FROM event_topics
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = ANY (%(names)s::text[]);

-- name: existing_workflows
SELECT name FROM dag_workflows
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND name = ANY (%(names)s::text[]) AND deleted_at IS NULL;
