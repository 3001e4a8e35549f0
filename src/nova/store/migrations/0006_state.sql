-- State: what functions keep between their calls, by key.

CREATE TABLE function_state (
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    function_id  uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    key          text NOT NULL COLLATE "C",    -- lists are in the order of its bytes
    value        text NOT NULL,                -- JSON, as it was given
    size         int NOT NULL,                 -- bytes of key and value
    version      bigint NOT NULL,              -- grows by one with each write; begins at 1 when the key is new
    expires_at   timestamptz,                  -- from then on the key is not there; the row goes later
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, namespace, function_id, key)
);
CREATE INDEX function_state_size ON function_state (function_id) INCLUDE (size);
CREATE INDEX function_state_expired ON function_state (expires_at) WHERE expires_at IS NOT NULL;
