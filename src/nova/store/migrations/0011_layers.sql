-- Layers and volumes, and who mounts them. Only new tables: code that does not know them works as before.
-- min_code: 0005

CREATE TABLE layers (
    id            uuid PRIMARY KEY,
    tenant_id     text NOT NULL,
    namespace     text NOT NULL,
    name          text NOT NULL,
    next_version  int NOT NULL DEFAULT 1,      -- numbers are never given twice
    created_at    timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, namespace) REFERENCES namespaces (tenant_id, name) ON UPDATE CASCADE ON DELETE CASCADE,
    UNIQUE (tenant_id, namespace, name)
);

CREATE TABLE layer_versions (
    layer_id     uuid NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    version      int NOT NULL,
    artifact     text NOT NULL REFERENCES blobs (sha256),  -- the packed tree: equal files give equal digests
    size         bigint NOT NULL,                          -- bytes of its files
    files        int NOT NULL,
    runtimes     text[] NOT NULL,                          -- sorted; empty: every runtime
    description  text NOT NULL,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (layer_id, version),
    UNIQUE (layer_id, artifact, runtimes)
);
CREATE INDEX layer_versions_artifact ON layer_versions (artifact);

-- Which versions of functions mount which versions of layers; what is mounted cannot be deleted.
CREATE TABLE function_layers (
    function_id    uuid NOT NULL,
    version        int NOT NULL,
    layer_id       uuid NOT NULL,
    layer_version  int NOT NULL,
    PRIMARY KEY (function_id, version, layer_id),
    FOREIGN KEY (function_id, version) REFERENCES function_versions (function_id, version) ON DELETE CASCADE,
    FOREIGN KEY (layer_id, layer_version) REFERENCES layer_versions (layer_id, version)
);
CREATE INDEX function_layers_layer ON function_layers (layer_id, layer_version);

CREATE TABLE volumes (
    id           uuid PRIMARY KEY,
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    name         text NOT NULL,
    size_mb      int NOT NULL,                 -- only grows
    shared       boolean NOT NULL,             -- several instances may write at once
    description  text NOT NULL,
    node         text,                         -- where its files are; NULL until it is first mounted
    used_bytes   bigint NOT NULL DEFAULT 0,    -- as that node said last
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, namespace) REFERENCES namespaces (tenant_id, name) ON UPDATE CASCADE ON DELETE CASCADE,
    UNIQUE (tenant_id, namespace, name)
);

CREATE TABLE function_mounts (
    function_id  uuid NOT NULL,
    version      int NOT NULL,
    volume_id    uuid NOT NULL REFERENCES volumes (id),
    PRIMARY KEY (function_id, version, volume_id),
    FOREIGN KEY (function_id, version) REFERENCES function_versions (function_id, version) ON DELETE CASCADE
);
CREATE INDEX function_mounts_volume ON function_mounts (volume_id);

-- The one instance that writes to a volume that is not shared. The row stays when nobody does, so that fences only grow.
CREATE TABLE volume_leases (
    volume_id    uuid PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    instance_id  text,                         -- NULL: free
    owner        text NOT NULL,                -- the process that runs the instance
    fence        bigint NOT NULL,
    until        timestamptz NOT NULL
);
