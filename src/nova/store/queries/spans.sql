-- Spans of sampled traces.

-- name: insert
INSERT INTO trace_spans (tenant_id, namespace, trace_id, span_id, parent_id, request_id, function_name, name, plane, node,
                         started_at, duration_us, error, attributes)
VALUES (%(tenant)s, %(namespace)s, %(trace_id)s, %(span_id)s, %(parent_id)s, %(request_id)s, %(function_name)s, %(name)s,
        %(plane)s, %(node)s, %(started_at)s, %(duration_us)s, %(error)s, %(attributes)s)
ON CONFLICT (tenant_id, namespace, trace_id, span_id) DO NOTHING;

-- name: trace
SELECT trace_id, span_id, parent_id, request_id, function_name, name, plane, node, started_at, duration_us, error, attributes
  FROM trace_spans
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND trace_id = %(trace_id)s
 ORDER BY started_at, duration_us DESC, span_id
 LIMIT %(limit)s;

-- name: trace_of_request
SELECT trace_id FROM trace_spans
 WHERE tenant_id = %(tenant)s AND namespace = %(namespace)s AND request_id = %(request_id)s
 LIMIT 1;
