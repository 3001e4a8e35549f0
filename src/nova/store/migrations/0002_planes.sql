-- Planes apart: who is there, who leads each duty, and what they prove themselves to each other with.
-- These tables belong to the platform, not to a tenant.

-- One row per duty of which only one process may be in charge. The fence grows with every change of hands, so that what a
-- former leader still writes can be refused.
CREATE TABLE leases (
    duty        text PRIMARY KEY,
    owner       text NOT NULL,               -- id of the process, never used twice
    node        text NOT NULL,               -- name of its node, for people
    fence       bigint NOT NULL,
    until       timestamptz NOT NULL,
    acquired_at timestamptz NOT NULL DEFAULT now()
);

-- One row per running process of a plane; it writes the row itself and renews it.
CREATE TABLE cluster_nodes (
    id             text PRIMARY KEY,
    plane          text NOT NULL,            -- comet, corona, nebula, aurora, zenith, nova
    name           text NOT NULL,
    address        text NOT NULL,            -- host:port that others can dial
    state          text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'cordoned', 'draining')),
    info           jsonb NOT NULL,           -- what does not change while it runs: cores, memory, version, backends
    load           jsonb NOT NULL DEFAULT '{}',
    labels         jsonb NOT NULL DEFAULT '{}',
    started_at     timestamptz NOT NULL DEFAULT now(),
    last_heartbeat timestamptz NOT NULL DEFAULT now(),
    lease_until    timestamptz NOT NULL
);
CREATE INDEX cluster_nodes_by_plane ON cluster_nodes (plane, lease_until);

-- Secrets that the platform makes for itself, such as the token its planes prove themselves with.
CREATE TABLE platform_secrets (
    name        text PRIMARY KEY,
    value       bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
