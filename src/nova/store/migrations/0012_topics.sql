-- Topics, their messages, and what waits to become one. Only new tables: code that does not know them works as before.
-- min_code: 0005

CREATE TABLE event_topics (
    id               uuid PRIMARY KEY,
    tenant_id        text NOT NULL,
    namespace        text NOT NULL,
    name             text NOT NULL,
    description      text NOT NULL,
    retention_hours  int NOT NULL,
    max_retained_mb  int,                       -- NULL: only age counts
    dedup_window_s   int NOT NULL,
    created_by       text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, namespace) REFERENCES namespaces (tenant_id, name) ON UPDATE CASCADE ON DELETE CASCADE,
    UNIQUE (tenant_id, namespace, name)
);

-- Where a topic ends. Whoever publishes locks its row until he has committed: so sequences have no gaps and become visible
-- in their order. No foreign key: the row outlives its topic until retention has removed the messages.
CREATE TABLE event_heads (
    topic_id        uuid PRIMARY KEY,
    first_sequence  bigint NOT NULL DEFAULT 1,  -- the oldest message that is kept; what is below is only not deleted yet
    last_sequence   bigint NOT NULL DEFAULT 0,
    bytes           bigint NOT NULL DEFAULT 0,  -- ever published
    last_at         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE event_messages (
    topic_id      uuid NOT NULL,
    sequence      bigint NOT NULL,
    id            uuid NOT NULL,
    payload       json NOT NULL,                -- not jsonb: any valid document, as it was sent
    headers       json,
    ordering_key  text,
    attributes    json,                         -- of CloudEvents, as the publisher gave them
    traceparent   text,
    tracestate    text,
    size          int NOT NULL,                 -- bytes of payload and headers
    position      bigint NOT NULL,              -- bytes published to the topic before it
    published_by  text NOT NULL,
    published_at  timestamptz NOT NULL,         -- never earlier than that of the message before
    PRIMARY KEY (topic_id, sequence)
);
CREATE INDEX event_messages_id ON event_messages (id);
CREATE INDEX event_messages_key ON event_messages (topic_id, ordering_key, sequence) WHERE ordering_key IS NOT NULL;

-- Which message stands for others of the same name. A digest, because names may be long.
CREATE TABLE event_dedup (
    topic_id    uuid NOT NULL,
    key         bytea NOT NULL,
    message_id  uuid NOT NULL,
    sequence    bigint NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (topic_id, key)
);
CREATE INDEX event_dedup_expiry ON event_dedup (expires_at);

-- What is accepted and not in its topic yet: held until it is released, or waiting for its time.
CREATE TABLE bus_outbox (
    id            uuid PRIMARY KEY,             -- of the message that it becomes
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    topic_id      uuid NOT NULL REFERENCES event_topics (id) ON DELETE CASCADE,
    status        text NOT NULL CHECK (status IN ('held', 'pending', 'published')),
    not_before    timestamptz NOT NULL,
    payload       json,                         -- NULL once it is published
    headers       json,
    ordering_key  text,
    attributes    json,
    dedup_key     bytea,
    traceparent   text,
    tracestate    text,
    size          int NOT NULL,
    sequence      bigint,
    duplicate     boolean NOT NULL DEFAULT false,
    created_by    text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    published_at  timestamptz
);
CREATE INDEX bus_outbox_due ON bus_outbox (not_before, id) WHERE status = 'pending';
CREATE INDEX bus_outbox_topic ON bus_outbox (topic_id, id DESC);
CREATE INDEX bus_outbox_published ON bus_outbox (published_at) WHERE status = 'published';
