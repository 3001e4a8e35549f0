-- The foundation: tenants and keys, functions with their versions and code, builds and work, call records.
-- Every unique key of a scoped table begins with tenant and namespace (directly or through function_id).

CREATE TABLE tenants (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    status      text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    tier        text NOT NULL DEFAULT 'standard',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE namespaces (
    tenant_id   text NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name        text NOT NULL,
    description text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, name)
);

INSERT INTO tenants (id, name) VALUES ('default', 'Default');
INSERT INTO namespaces (tenant_id, name) VALUES ('default', 'default');

CREATE TABLE api_keys (
    id           uuid PRIMARY KEY,
    tenant_id    text NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name         text NOT NULL,
    key_hash     bytea NOT NULL UNIQUE,
    prefix       text NOT NULL,
    tier         text NOT NULL,
    enabled      boolean NOT NULL DEFAULT true,
    permissions  jsonb NOT NULL,
    namespaces   text[] NOT NULL DEFAULT '{}',
    ip_allow     text[] NOT NULL DEFAULT '{}',
    description  text NOT NULL DEFAULT '',
    created_by   text NOT NULL,
    expires_at   timestamptz,
    previous_hash  bytea UNIQUE,           -- of the key before the last rotation, good until previous_until
    previous_until timestamptz,
    last_used_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, name)
);

CREATE TABLE config (
    key         text PRIMARY KEY,
    value       jsonb NOT NULL,
    updated_by  text NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_logs (
    id            uuid NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    actor         text NOT NULL,
    action        text NOT NULL,
    resource      text NOT NULL,
    outcome       text NOT NULL,
    address       text,
    request_id    text NOT NULL,
    details       jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (id)
);
CREATE INDEX audit_logs_by_time ON audit_logs (tenant_id, created_at DESC);

CREATE TABLE blobs (
    sha256      text PRIMARY KEY,
    size        bigint NOT NULL,
    media_type  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE blob_chunks (
    sha256  text NOT NULL REFERENCES blobs (sha256) ON DELETE CASCADE,
    seq     int NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (sha256, seq)
);
ALTER TABLE blob_chunks ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE functions (
    id            uuid PRIMARY KEY,
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    name          text NOT NULL,
    data          jsonb NOT NULL,           -- recorded and live settings
    live_version  int,                      -- what unqualified calls run; NULL until the first version is built
    head_version  int NOT NULL DEFAULT 1,   -- the newest deployed or activated; what a patch changes
    next_version  int NOT NULL DEFAULT 1,   -- numbers are never given twice
    generation    bigint NOT NULL DEFAULT 1,-- grows with every change; caches compare it
    etag          text NOT NULL,
    created_by    text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, namespace) REFERENCES namespaces (tenant_id, name) ON UPDATE CASCADE,
    UNIQUE (tenant_id, namespace, name)
);
CREATE INDEX functions_newest ON functions (tenant_id, namespace, id DESC);

CREATE TABLE function_versions (
    function_id  uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    version      int NOT NULL,
    data         jsonb NOT NULL,            -- the whole frozen configuration
    code_hash    text NOT NULL,             -- sha256:… over sorted path, mode and bytes
    code_size    bigint NOT NULL,           -- bytes of all its files
    artifact     text,                      -- sha256:… of the tree mounted at /code; NULL until built
    build_id     uuid,
    description  text NOT NULL DEFAULT '',
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (function_id, version)
);
CREATE INDEX function_versions_by_runtime ON function_versions ((data ->> 'runtime'));

CREATE TABLE function_aliases (
    function_id  uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    name         text NOT NULL,
    data         jsonb NOT NULL,
    etag         text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (function_id, name)
);

CREATE TABLE function_code (
    function_id     uuid NOT NULL,
    version         int NOT NULL,
    source_code     text,                   -- the entry file, when it is text
    source_hash     text NOT NULL,
    binary_hash     text,
    compile_status  text NOT NULL
        CHECK (compile_status IN ('not_required', 'pending', 'compiling', 'success', 'failed')),
    compile_error   text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (function_id, version),
    FOREIGN KEY (function_id, version) REFERENCES function_versions (function_id, version) ON DELETE CASCADE
);

CREATE TABLE function_files (
    id           uuid PRIMARY KEY,
    function_id  uuid NOT NULL,
    version      int NOT NULL,
    file_path    text NOT NULL,
    digest       text NOT NULL REFERENCES blobs (sha256),
    size         bigint NOT NULL,
    mode         int NOT NULL,              -- permission bits
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (function_id, version, file_path),
    FOREIGN KEY (function_id, version) REFERENCES function_versions (function_id, version) ON DELETE CASCADE
);
CREATE INDEX function_files_by_digest ON function_files (digest);

CREATE TABLE builds (
    id           uuid PRIMARY KEY,
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    function_id  uuid NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    version      int NOT NULL,
    activate     boolean NOT NULL DEFAULT true,  -- make the version live when it is built
    cache_key    text NOT NULL,
    status       text NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    cached       boolean NOT NULL DEFAULT false,
    artifact     text,
    toolchain    text,
    error        text,
    log          text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz
);
CREATE INDEX builds_by_function ON builds (function_id, created_at DESC);

CREATE TABLE build_cache (
    tenant_id   text NOT NULL,
    cache_key   text NOT NULL,
    artifact    text NOT NULL REFERENCES blobs (sha256),
    created_at  timestamptz NOT NULL DEFAULT now(),
    used_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, cache_key)
);

-- Work of every kind. Small and hot: a row lives from acceptance to completion and is deleted with it.
CREATE TABLE work (
    id           uuid PRIMARY KEY,
    kind         text NOT NULL,
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    subject      uuid NOT NULL,             -- the noun's own row
    payload      jsonb NOT NULL DEFAULT '{}',
    attempt      int NOT NULL DEFAULT 0,
    run_at       timestamptz NOT NULL DEFAULT now(),
    owner        text,
    fence        bigint NOT NULL DEFAULT 0, -- grows with every claim; a stale owner cannot finish
    lease_until  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, namespace, kind, subject)
);
CREATE INDEX work_claim ON work (kind, run_at, id);

CREATE SEQUENCE invocation_logs_seq;
CREATE TABLE invocation_logs (
    id             uuid NOT NULL,           -- the request id
    created_at     timestamptz NOT NULL DEFAULT now(),
    seq            bigint NOT NULL DEFAULT nextval('invocation_logs_seq'),  -- in the order of commits; live tails follow it
    tenant_id      text NOT NULL,
    namespace      text NOT NULL,
    function_id    uuid NOT NULL,
    function_name  text NOT NULL,
    version        int NOT NULL,
    qualifier      text,
    runtime        text NOT NULL,
    trigger        text NOT NULL,
    caller         text NOT NULL,
    status         text NOT NULL,           -- success, error
    error_kind     text,
    error_message  text,
    error_stack    json,
    success        boolean NOT NULL,
    cold_start     boolean NOT NULL,
    start_source   text NOT NULL,
    instance_id    text NOT NULL,
    duration_ms    double precision NOT NULL,
    queue_ms       double precision NOT NULL,
    boot_ms        double precision NOT NULL,
    init_ms        double precision NOT NULL,
    input_size     bigint NOT NULL,
    output_size    bigint NOT NULL,
    input          json,                    -- not jsonb: any valid document is kept, as it was sent
    output         json,
    stdout         text NOT NULL DEFAULT '',
    stderr         text NOT NULL DEFAULT '',
    trace_id       text,
    client_request_id text,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE invocation_logs_default PARTITION OF invocation_logs DEFAULT;
CREATE INDEX invocation_logs_function_id ON invocation_logs (function_id, seq);
CREATE INDEX invocation_logs_func_time ON invocation_logs (function_id, created_at DESC, id DESC);
CREATE INDEX invocation_logs_scope_time ON invocation_logs (tenant_id, namespace, created_at DESC, id DESC);
