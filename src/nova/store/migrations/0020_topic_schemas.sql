-- What messages of a topic have to look like. Code that does not know it publishes without a check.
-- min_code: 0012
ALTER TABLE event_topics
    ADD COLUMN schema      json,                          -- JSON Schema of payloads; NULL: none
    ADD COLUMN schema_mode text NOT NULL DEFAULT 'off' CHECK (schema_mode IN ('off', 'reject'));
