"""Builds in PostgreSQL: rows that control inserts, and whose outcome reaches the version in the same transaction."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter

from nova.domain.build import BuildStatus
from nova.domain.identity import Scope
from nova.domain.version import VersionConfig
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store import work
from nova.store.db import Connection, Database, Queries, Row
from nova.store.functions import announce, new_etag
from nova.store.listen import Channel

KIND = "build"
"""Of work."""
CHANNEL = Channel.BUILDS
"""The payload is the id of a build whose log or status changed."""
LOG_LIMIT = 1 << 20
"""Characters kept of a build's output."""
_CUT = "\n[the rest of the output is not kept]\n"

sql = Queries("builds")
_config: TypeAdapter[VersionConfig] = TypeAdapter(VersionConfig)


@dataclass(frozen=True, slots=True)
class BuildRecord:
    id: str
    function: str
    function_id: str
    version: int
    activate: bool
    status: BuildStatus
    cached: bool
    artifact: str | None
    toolchain: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Row) -> "BuildRecord":
        return cls(**{**row, "id": str(row["id"]), "function_id": str(row["function_id"])})


@dataclass(frozen=True, slots=True)
class BuildSubject:
    """What is to be built."""

    id: str
    function_id: str
    version: int
    status: BuildStatus
    config: VersionConfig
    code_hash: str


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Output from an offset on. ``status`` and ``error`` are those of the same moment."""

    text: str
    status: BuildStatus
    error: str | None


async def enqueue(
    conn: Connection, scope: Scope, *, function_id: str, version: int, activate: bool = True, fresh: bool = False
) -> str:
    """Ask for a build of a version whose rows exist in this transaction; the build's id, which the version names now.

    ``activate``: make the version live when it is built. ``fresh``: do not answer from the cache.
    """
    build_id = new_id()
    await conn.run(
        sql.insert,
        id=build_id,
        tenant=scope.tenant,
        namespace=scope.namespace,
        function_id=function_id,
        version=version,
        activate=activate,
    )
    await conn.run(sql.name_in_version, id=build_id, function_id=function_id, version=version)
    await conn.run(sql.set_pending, function_id=function_id, version=version)
    await work.enqueue(conn, KIND, scope, build_id, {"fresh": fresh})
    return build_id


class BuildStore:
    """Reads take a connection of their own; writes that belong together take the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, scope: Scope, build_id: str) -> BuildRecord:
        """Raises ``not_found``."""
        row = await self._db.one(sql.get, id=build_id, tenant=scope.tenant, namespace=scope.namespace)
        if row is None:
            raise not_found("build", build_id)
        return BuildRecord.of(row)

    async def list(self, scope: Scope, function: str, *, limit: int, before: str | None = None) -> list[BuildRecord]:
        """Builds of one function, newest first, those older than the build ``before``."""
        rows = await self._db.fetch(
            sql.list, tenant=scope.tenant, namespace=scope.namespace, function=function, limit=limit, before=before
        )
        return [BuildRecord.of(row) for row in rows]

    async def read_log(self, scope: Scope, build_id: str, offset: int = 0) -> LogPiece:
        """The output from character ``offset`` on. Raises ``not_found``."""
        row = await self._db.one(sql.log, id=build_id, tenant=scope.tenant, namespace=scope.namespace, offset=offset)
        if row is None:
            raise not_found("build", build_id)
        return LogPiece(**row)

    async def rebuild(self, scope: Scope, function: str, version: int | None, *, activate: bool) -> str:
        """Build a version (default: the newest deployed) again, without the cache; the id of the build.

        Raises ``not_found``, or ``invalid_state`` when it needs no build or one is under way.
        """
        async with self._db.transaction() as conn:
            row = await conn.one(
                sql.rebuildable, tenant=scope.tenant, namespace=scope.namespace, function=function, version=version
            )
            if row is None:
                raise not_found("version" if version else "function", f"{function}:{version}" if version else function)
            if row["compile_status"] == "not_required":
                raise NovaError("invalid_state", f"version {row['version']} of {function!r} needs no build")
            key = {"function_id": row["function_id"], "version": row["version"]}
            if running := await conn.one(sql.unfinished, **key):
                raise NovaError(
                    "invalid_state", "a build of this version is under way", extra={"build_id": str(running["id"])}
                )
            return await enqueue(conn, scope, **key, activate=activate, fresh=True)

    async def cancel(self, scope: Scope, build_id: str) -> None:
        """Stop a build, wherever it runs. Raises ``not_found``, or ``invalid_state`` when it is over."""
        async with self._db.transaction() as conn:
            await work.withdraw(conn, KIND, scope, build_id)
            row = await conn.one(sql.get, id=build_id, tenant=scope.tenant, namespace=scope.namespace)
            if row is None:
                raise not_found("build", build_id)
            if not await self.fail(conn, build_id, "the build was cancelled", status="cancelled"):
                raise NovaError("invalid_state", f"the build has {row['status']}")

    async def subject(self, build_id: str) -> BuildSubject | None:
        """What to build, or None when the function or version is gone."""
        row = await self._db.one(sql.subject, id=build_id)
        if row is None:
            return None
        return BuildSubject(
            id=str(row["id"]),
            function_id=str(row["function_id"]),
            version=row["version"],
            status=row["status"],
            config=_config.validate_python(row["data"]),
            code_hash=row["code_hash"],
        )

    async def sources(self, subject: BuildSubject) -> AsyncIterator[tuple[str, int, int, bytes]]:
        """The source files in pieces: path, permission bits, number of the piece, bytes."""
        async with self._db.transaction() as conn, conn.raw.cursor(name="sources") as cursor:
            cursor.itersize = 8  # pieces are of 1 MiB
            await cursor.execute(sql.sources, {"function_id": subject.function_id, "version": subject.version})
            async for row in cursor:
                yield row["path"], row["mode"], row["seq"], row["data"]

    async def start(self, conn: Connection, scope: Scope, build_id: str, *, cache_key: str, toolchain: str) -> bool:
        """Mark the build as running. False: an equal one of this tenant runs right now, come back for its result."""
        await conn.one(sql.turn, tenant=scope.tenant, cache_key=cache_key)
        if await conn.one(sql.twin, tenant=scope.tenant, cache_key=cache_key, id=build_id):
            return False
        await conn.run(sql.start, id=build_id, cache_key=cache_key, toolchain=toolchain)
        await conn.run(sql.set_compiling, id=build_id)
        await conn.notify(CHANNEL, build_id)
        return True

    async def append_log(self, build_id: str, text: str) -> None:
        """Add output. Beyond :data:`LOG_LIMIT` it is cut, and the log says so."""
        async with self._db.transaction() as conn:
            await conn.run(
                sql.append_log, id=build_id, text=text.replace("\x00", "\ufffd"), limit=LOG_LIMIT, marker=_CUT
            )
            await conn.notify(CHANNEL, build_id)

    async def cached(self, scope: Scope, cache_key: str) -> str | None:
        """The artifact of an equal build of the same tenant."""
        key = {"tenant": scope.tenant, "cache_key": cache_key}
        row = await self._db.one(sql.cached, **key)
        if row is None:
            return None
        await self._db.run(sql.cache_used, **key)
        return str(row["artifact"])

    async def remember(self, conn: Connection, scope: Scope, cache_key: str, artifact: str, *, limit: int) -> None:
        """Answer equal builds of this tenant with ``artifact``, within ``limit`` bytes of artifacts."""
        await conn.run(sql.remember, tenant=scope.tenant, cache_key=cache_key, artifact=artifact)
        await conn.run(sql.forget, tenant=scope.tenant, limit=limit)

    async def succeed(self, conn: Connection, build_id: str, artifact: str, *, cached: bool) -> bool:
        """Give the version its artifact and, when it asked for that and is newer, make it live.

        False: the build was cancelled, or its version has another build by now; nothing is published then.
        """
        await conn.one(sql.lock_function, id=build_id)
        ended = await self._end(conn, build_id, "succeeded", artifact=artifact, cached=cached)
        if ended is None:
            return False
        version = {"function_id": ended["function_id"], "version": ended["version"]}
        if not await conn.run(sql.set_artifact, **version, id=build_id, artifact=artifact):
            return False
        await conn.run(sql.set_success, **version, artifact=artifact)
        await _publish(conn, **version, activate=ended["activate"])
        return True

    async def fail(self, conn: Connection, build_id: str, error: str, *, status: BuildStatus = "failed") -> bool:
        """Record that there is no artifact. What is live keeps serving. False: the build was over already."""
        await conn.one(sql.lock_function, id=build_id)
        ended = await self._end(conn, build_id, status, error=error)
        if ended is None:
            return False
        version = {"function_id": ended["function_id"], "version": ended["version"]}
        if await conn.run(sql.set_failed, **version, id=build_id, error=error):
            await _publish(conn, **version, activate=False)
        return True

    async def _end(
        self,
        conn: Connection,
        build_id: str,
        status: BuildStatus,
        *,
        error: str | None = None,
        artifact: str | None = None,
        cached: bool = False,
    ) -> Row | None:
        await conn.notify(CHANNEL, build_id)
        return await conn.one(sql.end, id=build_id, status=status, error=error, artifact=artifact, cached=cached)

    async def retire(self, *, older_than_s: float, limit: int = 1000) -> int:
        """Remove finished builds past their time; how many. The build that a version names stays with it."""
        return await self._db.run(sql.retire, age_s=older_than_s, limit=limit)


async def _publish(conn: Connection, *, function_id: str, version: int, activate: bool) -> None:
    row = await conn.one(sql.publish, function_id=function_id, version=version, activate=activate, etag=new_etag())
    if row is not None:
        await announce(conn, Scope(row["tenant_id"], row["namespace"]), row["name"], row["generation"])
