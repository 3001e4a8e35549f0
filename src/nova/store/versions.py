"""Versions in PostgreSQL: frozen configuration, code and files."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from nova.domain.function import CompileStatus
from nova.domain.tree import LINK, SourceFile, Tree
from nova.domain.version import VersionConfig
from nova.ids import new_id
from nova.store.blobs import BlobStore
from nova.store.db import Connection, Database, Queries, Row

_sql = Queries("versions")
_config: TypeAdapter[VersionConfig] = TypeAdapter(VersionConfig)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version. ``artifact`` is the digest of the tar of what is mounted at ``/code``; None until it is built."""

    version: int
    config: VersionConfig
    code_hash: str
    code_size: int
    artifact: str | None
    build_id: str | None
    compile_status: CompileStatus
    compile_error: str | None
    description: str
    created_by: str
    created_at: datetime

    @property
    def built(self) -> bool:
        return self.compile_status in ("not_required", "success")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One source file. ``digest`` names its bytes in the blob store; ``mode`` has the type bits of a link only."""

    path: str
    digest: str
    size: int
    mode: int

    @property
    def is_link(self) -> bool:
        return self.mode == LINK


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """``source_code`` is the entry file when it is text, ``binary_hash`` the artifact."""

    source_code: str | None
    source_hash: str
    binary_hash: str | None


class VersionStore:
    """Every method takes the connection of a running transaction, or one of its own."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db = db
        self._blobs = blobs

    async def version(self, function_id: str, version: int, conn: Connection | None = None) -> VersionRecord | None:
        """One version, in one round trip."""
        row = await (conn or self._db).one(_sql.get, id=function_id, version=version)
        return None if row is None else version_of(row)

    async def page(self, function_id: str, *, before: int | None, limit: int) -> list[VersionRecord]:
        """Newest first, below the number ``before``."""
        rows = await self._db.fetch(_sql.list, id=function_id, before=before, limit=limit)
        return [version_of(row) for row in rows]

    async def insert(
        self,
        conn: Connection,
        function_id: str,
        version: int,
        *,
        config: VersionConfig,
        code_hash: str,
        code_size: int,
        source_code: str | None,
        artifact: str | None,
        compile_status: CompileStatus,
        description: str,
        created_by: str,
    ) -> None:
        """The version's own rows; its files come by :meth:`put_tree` or :meth:`copy_files`."""
        await conn.run(
            _sql.insert,
            id=function_id,
            version=version,
            config=Jsonb(_config.dump_python(config, mode="json")),
            code_hash=code_hash,
            code_size=code_size,
            artifact=artifact,
            description=description,
            created_by=created_by,
        )
        await conn.run(
            _sql.insert_code,
            id=function_id,
            version=version,
            source_code=source_code,
            source_hash=code_hash,
            artifact=artifact,
            compile_status=compile_status,
        )

    async def put_tree(self, conn: Connection, function_id: str, version: int, tree: Tree) -> None:
        """Store the files of a version that :meth:`insert` has made."""
        digests = await self._blobs.put_many(conn, [file.data for file in tree])
        rows = [
            {
                "file_id": new_id(),
                "id": function_id,
                "version": version,
                "path": file.path,
                "digest": digest,
                "size": len(file.data),
                "mode": file.mode,
            }
            for file, digest in zip(tree, digests, strict=True)
        ]
        await conn.run_many(_sql.insert_file, rows)

    async def copy_files(self, conn: Connection, function_id: str, *, base: int, version: int) -> None:
        """Give a version the files of another."""
        await conn.run(_sql.copy_files, id=function_id, base=base, version=version)

    async def delete(self, conn: Connection, function_id: str, version: int) -> bool:
        return await conn.run(_sql.delete, id=function_id, version=version) > 0

    async def code(self, function_id: str, version: int) -> CodeRecord | None:
        row = await self._db.one(_sql.source, id=function_id, version=version)
        return None if row is None else CodeRecord(row["source_code"], row["source_hash"], row["binary_hash"])

    async def files(self, function_id: str, version: int, conn: Connection | None = None) -> list[FileRecord]:
        """By path."""
        rows = await (conn or self._db).fetch(_sql.files, id=function_id, version=version)
        return [FileRecord(**row) for row in rows]

    async def file(self, function_id: str, version: int, path: str) -> FileRecord | None:
        row = await self._db.one(_sql.file, id=function_id, version=version, path=path)
        return None if row is None else FileRecord(**row)

    async def tree(self, function_id: str, version: int, conn: Connection | None = None) -> Tree:
        """The whole source tree, with its bytes."""
        return await self.load(await self.files(function_id, version, conn), conn)

    async def load(self, files: Iterable[FileRecord], conn: Connection | None = None) -> Tree:
        """These files, with their bytes."""
        files = list(files)
        content = await self._blobs.get_many([file.digest for file in files], conn)
        return Tree(SourceFile(file.path, file.mode, content[file.digest]) for file in files)


def version_of(row: Row) -> VersionRecord:
    """A version from a row that has its columns under the names of ``queries/versions.sql``."""
    return VersionRecord(
        version=row["version"],
        config=_config.validate_python(row["config"]),
        code_hash=row["code_hash"],
        code_size=row["code_size"],
        artifact=row["artifact"],
        build_id=row["build_id"],
        compile_status=row["compile_status"],
        compile_error=row["compile_error"],
        description=row["description"],
        created_by=row["version_created_by"],
        created_at=row["version_created_at"],
    )
