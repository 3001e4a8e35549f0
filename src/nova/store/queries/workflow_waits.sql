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

-- name: hold -- the rows of work, before anything else and in one order: see nova.store.workflow_signals
SELECT id FROM work WHERE id = ANY (%(runs)s::uuid[]) ORDER BY id FOR UPDATE

-- name: take -- each unless another node of its run got this message; the runs are told
WITH given AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(runs)s::uuid[], %(keys)s::text[], %(topics)s::uuid[], %(sequences)s::bigint[],
                         %(events)s::text[], %(senders)s::text[])
         AS g (id, run_id, node_key, topic_id, sequence, event, sender)
), taken AS (
    UPDATE dag_topic_waits w SET taken = g.sequence, topic_id = g.topic_id, next_sequence = g.sequence + 1
    FROM given g
    WHERE w.run_id = g.run_id AND w.node_key = g.node_key AND w.taken IS NULL
      AND NOT EXISTS (SELECT FROM dag_topic_waits o
                      WHERE o.run_id = w.run_id AND o.topic_id = g.topic_id AND o.taken = g.sequence)
    RETURNING w.run_id, w.node_key
), woken AS (
    UPDATE work w SET run_at = now() WHERE w.id IN (SELECT run_id FROM taken) RETURNING w.id, w.tenant_id, w.namespace
), told AS (
    INSERT INTO dag_events (id, tenant_id, namespace, run_id, kind, key, payload, sender)
    SELECT g.id, w.tenant_id, w.namespace, g.run_id, 'message', g.node_key, g.event::json, g.sender
    FROM given g JOIN taken t ON t.run_id = g.run_id AND t.node_key = g.node_key JOIN woken w ON w.id = g.run_id
)
SELECT run_id::text AS run_id, node_key FROM taken

-- name: drop
DELETE FROM dag_topic_waits WHERE run_id = %(run)s::uuid AND node_key = %(key)s AND taken IS NULL

-- name: advance -- so that who leads next need not read everything again
UPDATE dag_topic_waits w SET topic_id = g.topic_id, next_sequence = g.next_sequence
FROM unnest(%(runs)s::uuid[], %(keys)s::text[], %(topics)s::uuid[], %(sequences)s::bigint[])
     AS g (run_id, node_key, topic_id, next_sequence)
WHERE w.run_id = g.run_id AND w.node_key = g.node_key AND w.taken IS NULL
