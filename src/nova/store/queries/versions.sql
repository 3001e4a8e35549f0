-- Versions: configuration, code and files. Rows are written once; only the outcome of a build is added later.

-- name: get
SELECT v.version, v.data AS config, v.code_hash, v.code_size, v.artifact, v.build_id::text AS build_id, v.description,
       v.created_by AS version_created_by, v.created_at AS version_created_at, c.compile_status, c.compile_error
  FROM function_versions v
  JOIN function_code c USING (function_id, version)
 WHERE v.function_id = %(id)s AND v.version = %(version)s;

-- name: list
SELECT v.version, v.data AS config, v.code_hash, v.code_size, v.artifact, v.build_id::text AS build_id, v.description,
       v.created_by AS version_created_by, v.created_at AS version_created_at, c.compile_status, c.compile_error
  FROM function_versions v
  JOIN function_code c USING (function_id, version)
 WHERE v.function_id = %(id)s AND (%(before)s::int IS NULL OR v.version < %(before)s)
 ORDER BY v.version DESC
 LIMIT %(limit)s;

-- name: insert
INSERT INTO function_versions (function_id, version, data, code_hash, code_size, artifact, description, created_by)
VALUES (%(id)s, %(version)s, %(config)s, %(code_hash)s, %(code_size)s, %(artifact)s, %(description)s, %(created_by)s);

-- name: insert_code
INSERT INTO function_code (function_id, version, source_code, source_hash, binary_hash, compile_status)
VALUES (%(id)s, %(version)s, %(source_code)s, %(source_hash)s, %(artifact)s, %(compile_status)s);

-- name: insert_file
INSERT INTO function_files (id, function_id, version, file_path, digest, size, mode)
VALUES (%(file_id)s, %(id)s, %(version)s, %(path)s, %(digest)s, %(size)s, %(mode)s);

-- name: copy_files
INSERT INTO function_files (id, function_id, version, file_path, digest, size, mode)
SELECT gen_random_uuid(), function_id, %(version)s, file_path, digest, size, mode
  FROM function_files
 WHERE function_id = %(id)s AND version = %(base)s;

-- name: delete
DELETE FROM function_versions WHERE function_id = %(id)s AND version = %(version)s;

-- name: files
SELECT file_path AS path, digest, size, mode
  FROM function_files
 WHERE function_id = %(id)s AND version = %(version)s
 ORDER BY file_path COLLATE "C";

-- name: file
SELECT file_path AS path, digest, size, mode
  FROM function_files
 WHERE function_id = %(id)s AND version = %(version)s AND file_path = %(path)s;

-- name: source
SELECT source_code, source_hash, binary_hash FROM function_code
 WHERE function_id = %(id)s AND version = %(version)s;
