-- Where the time of a cold call went, in parts, and how each call ended in one word. Older records have neither.
-- min_code: 0005
ALTER TABLE invocation_logs
    ADD COLUMN runtime_ms double precision NOT NULL DEFAULT 0,  -- of boot_ms
    ADD COLUMN import_ms double precision NOT NULL DEFAULT 0,   -- of init_ms
    ADD COLUMN outcome text NOT NULL DEFAULT '';
