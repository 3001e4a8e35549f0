-- Nodes of runs that wait for messages of topics. See nova.store.workflow_waits.

-- name: open -- of runs that go on, by their keys; with the topic of that name that there is now
SELECT w.run_id::text AS run_id, w.node_key, w.tenant_id, w.namespace, w.topic, w.filters, w.since,
       t.id::text AS topic_id, CASE WHEN w.topic_id = t.id THEN w.next_sequence END AS next_sequence
FROM dag_topic_waits w
JOIN dag_runs r ON r.id = w.run_id AND r.finished_at IS NULL
LEFT JOIN event_topics t ON t.tenant_id = w.tenant_id AND t.namespace = w.namespace AND t.name = w.topic
WHERE w.taken IS NULL
  AND (%(run)s::uuid IS NULL OR (w.run_id, w.node_key) > (%(run)s::uuid, %(key)s::text))
ORDER BY w.run_id, w.node_key
LIMIT %(limit)s

-- name: of_runs
SELECT w.run_id::text AS run_id, w.node_key, w.tenant_id, w.namespace, w.topic, w.filters, w.since,
       t.id::text AS topic_id, CASE WHEN w.topic_id = t.id THEN w.next_sequence END AS next_sequence
FROM dag_topic_waits w
JOIN dag_runs r ON r.id = w.run_id AND r.finished_at IS NULL
LEFT JOIN event_topics t ON t.tenant_id = w.tenant_id AND t.namespace = w.namespace AND t.name = w.topic
WHERE w.taken IS NULL AND w.run_id = ANY (%(runs)s::uuid[])

-- name: hold -- the row of work, before anything else: see nova.store.workflow_signals
SELECT id FROM work WHERE id = %(run)s::uuid FOR UPDATE

-- name: take -- unless another node of the run got this message
UPDATE dag_topic_waits w SET taken = %(sequence)s, topic_id = %(topic)s::uuid, next_sequence = %(sequence)s + 1
WHERE w.run_id = %(run)s::uuid AND w.node_key = %(key)s AND w.taken IS NULL
  AND NOT EXISTS (SELECT FROM dag_topic_waits o
                  WHERE o.run_id = w.run_id AND o.topic_id = %(topic)s::uuid AND o.taken = %(sequence)s)

-- name: drop
DELETE FROM dag_topic_waits WHERE run_id = %(run)s::uuid AND node_key = %(key)s AND taken IS NULL

-- name: advance -- so that who leads next need not read everything again
UPDATE dag_topic_waits w SET topic_id = g.topic_id, next_sequence = g.next_sequence
FROM unnest(%(runs)s::uuid[], %(keys)s::text[], %(topics)s::uuid[], %(sequences)s::bigint[])
     AS g (run_id, node_key, topic_id, next_sequence)
WHERE w.run_id = g.run_id AND w.node_key = g.node_key AND w.taken IS NULL
