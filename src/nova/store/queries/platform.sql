-- name: keep_secret
INSERT INTO platform_secrets (name, value) VALUES (%(name)s, %(value)s)
ON CONFLICT (name) DO NOTHING;

-- name: get_secret
SELECT value FROM platform_secrets WHERE name = %(name)s;
