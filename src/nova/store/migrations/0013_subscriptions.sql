-- Subscriptions: who gets the messages of a topic, how far each has come, and what became of each message. Only new tables.
-- min_code: 0005

CREATE TABLE event_subscriptions (
    id               uuid PRIMARY KEY,
    tenant_id        text NOT NULL,
    namespace        text NOT NULL,
    topic_id         uuid NOT NULL REFERENCES event_topics (id) ON DELETE CASCADE,
    name             text NOT NULL,
    consumer_group   text NOT NULL,
    enabled          boolean NOT NULL,
    disabled_reason  text,                       -- why the platform paused it; NULL: it did not
    settings         jsonb NOT NULL,
    secret           text,                       -- what webhooks are signed with
    old_secret       text,                       -- beside it until old_secret_until
    old_secret_until timestamptz,
    shard            smallint NOT NULL,          -- which duty serves it
    cursor           bigint NOT NULL,            -- every message up to it has a delivery or was filtered out
    generation       int NOT NULL DEFAULT 0,     -- of deliveries that are made as the cursor moves
    generations      int NOT NULL DEFAULT 0,     -- handed out so far: one for each replay and seek
    replayed_to      bigint NOT NULL DEFAULT 0,  -- what is read again up to here is a replay
    epoch            int NOT NULL DEFAULT 0,     -- grows when anything but the cursor changes
    expired          bigint NOT NULL DEFAULT 0,  -- messages whose retention ended before they were read
    in_charge        bigint,                     -- fence of the term that reads; NULL: the last one ended in good order
    created_by       text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, namespace, topic_id, name),
    UNIQUE (tenant_id, namespace, topic_id, consumer_group)
) WITH (fillfactor = 70);
CREATE INDEX event_subscriptions_shard ON event_subscriptions (shard, id);
CREATE INDEX event_subscriptions_topic ON event_subscriptions (topic_id, id);

-- One row for each message that was delivered, or waits for it after a first attempt. The key is the inbox: an effect is
-- recorded once for each generation. Without a foreign key: thousands of rows a second would each look it up.
CREATE TABLE event_deliveries (
    subscription_id uuid NOT NULL,
    sequence        bigint NOT NULL,
    generation      int NOT NULL,
    tenant_id       text NOT NULL,
    namespace       text NOT NULL,
    topic_id        uuid NOT NULL,
    status          text NOT NULL CHECK (status IN ('queued', 'succeeded', 'dlq', 'skipped')),
    attempts        int NOT NULL,
    replay          boolean NOT NULL,
    ordering_key    text,                        -- NULL also where order does not matter
    next_run_at     timestamptz,
    started_at      timestamptz,                 -- of the last attempt
    duration_ms     real,
    request_id      text,
    error           text,
    history         jsonb,                       -- attempts that failed, oldest first
    ended_at        timestamptz,
    PRIMARY KEY (subscription_id, sequence, generation)
);
CREATE INDEX event_deliveries_queued ON event_deliveries (subscription_id, sequence, generation) WHERE status = 'queued';
CREATE INDEX event_deliveries_dead ON event_deliveries (topic_id, ended_at DESC) WHERE status = 'dlq';
CREATE INDEX event_deliveries_dead_of ON event_deliveries (subscription_id, sequence) WHERE status = 'dlq';
CREATE INDEX event_deliveries_age ON event_deliveries (ended_at) WHERE ended_at IS NOT NULL;

CREATE FUNCTION event_deliveries_of_subscription() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM event_deliveries WHERE subscription_id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER event_subscriptions_deleted AFTER DELETE ON event_subscriptions
    FOR EACH ROW EXECUTE FUNCTION event_deliveries_of_subscription();
