-- name: get
SELECT name, data, etag, created_at, updated_at FROM function_aliases WHERE function_id = %(id)s AND name = %(name)s;

-- name: list
SELECT name, data, etag, created_at, updated_at FROM function_aliases
 WHERE function_id = %(id)s AND (%(after)s::text IS NULL OR name > %(after)s)
 ORDER BY name
 LIMIT %(limit)s;

-- name: insert
INSERT INTO function_aliases (function_id, name, data, etag)
VALUES (%(id)s, %(name)s, %(data)s, %(etag)s)
ON CONFLICT (function_id, name) DO NOTHING;

-- name: save
UPDATE function_aliases SET data = %(data)s, etag = %(etag)s, updated_at = now()
 WHERE function_id = %(id)s AND name = %(name)s;

-- name: delete
DELETE FROM function_aliases WHERE function_id = %(id)s AND name = %(name)s;
