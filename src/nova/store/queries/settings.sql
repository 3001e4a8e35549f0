-- name: all_settings
SELECT key, value FROM config;

-- name: put_setting
INSERT INTO config (key, value, updated_by) VALUES (%(key)s, %(value)s, %(by)s)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_by = excluded.updated_by, updated_at = now();

-- name: delete_setting
DELETE FROM config WHERE key = %(key)s;
