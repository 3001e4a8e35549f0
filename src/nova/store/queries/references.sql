-- What names a function, by a name that is looked up when it is used.

-- name: of_function
SELECT 'subscription' AS kind, s.id::text AS id, t.name || '/' || s.name AS name
  FROM event_subscriptions s JOIN event_topics t ON t.id = s.topic_id
 WHERE s.tenant_id = %(tenant)s AND s.namespace = %(namespace)s
   AND s.settings ->> 'type' = 'function' AND s.settings ->> 'target' = %(name)s
UNION ALL
SELECT 'trigger', id::text, name FROM triggers
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND target_type = 'function' AND target = %(name)s
UNION ALL
SELECT 'workflow', w.id::text, w.name
  FROM dag_workflows w JOIN dag_workflow_versions v ON v.workflow_id = w.id AND v.version = w.active_version
 WHERE w.tenant_id = %(tenant)s AND w.namespace = %(namespace)s AND w.deleted_at IS NULL
   AND jsonb_path_exists(v.definition::jsonb, '$.**.function_name ? (@ == $name)',
                         jsonb_build_object('name', %(name)s::text))
UNION ALL
SELECT 'destination', f.id::text, f.name
  FROM functions f,
       (VALUES ('on_success'), ('on_failure')) AS ends (name),
       LATERAL (SELECT f.data #> ARRAY['recorded', 'async_destinations', ends.name] AS value) AS way
 WHERE f.tenant_id = %(tenant)s AND f.namespace = %(namespace)s AND f.name <> %(name)s
   AND way.value ->> 'type' = 'function' AND way.value ->> 'target' = %(name)s
 ORDER BY kind, name;
