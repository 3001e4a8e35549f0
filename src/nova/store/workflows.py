"""Workflows and their versions in PostgreSQL. Runs are in :mod:`nova.store.workflow_runs`."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal

from psycopg.types.json import Json, Jsonb

from nova.domain.identity import Scope
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row

OnLimit = Literal["queue", "reject"]
OnFailure = Literal["cancel", "finish"]
Referred = Literal["function", "workflow", "topic"]
"""What a definition names."""
_sql = Queries("workflows")


@dataclass(frozen=True, slots=True)
class WorkflowSettings:
    """What may be changed on a workflow. ``default_timeout_s`` None: a year."""

    description: str
    tags: Mapping[str, str]
    max_concurrent_runs: int
    on_limit: OnLimit
    on_failure: OnFailure
    default_timeout_s: int | None
    halted: bool


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """``active_version`` None: nothing was published and activated yet."""

    id: str
    scope: Scope
    name: str
    settings: WorkflowSettings
    active_version: int | None
    next_version: int
    etag: str
    created_by: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """``nodes``: how many, without those inside of others."""

    version: int
    nodes: int
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class VersionRecord(VersionSummary):
    definition: dict[str, Any]


class WorkflowStore:
    """Readers take the connection of a running transaction, or one of their own; whoever writes has locked the workflow."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def insert(
        self, conn: Connection, scope: Scope, name: str, settings: WorkflowSettings, created_by: str
    ) -> WorkflowRecord | None:
        """None when the name is taken."""
        row = await conn.one(
            _sql.insert,
            id=new_id(),
            tenant=scope.tenant,
            namespace=scope.namespace,
            name=name,
            etag=new_id(),
            created_by=created_by,
            **_columns(settings),
        )
        return None if row is None else _record(row)

    async def get(self, scope: Scope, name: str, conn: Connection | None = None) -> WorkflowRecord | None:
        row = await (conn or self._db).one(_sql.get, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return None if row is None else _record(row)

    async def lock(self, conn: Connection, scope: Scope, name: str) -> WorkflowRecord | None:
        """As :meth:`get`; until the transaction ends nobody changes it, and no run of it begins."""
        row = await conn.one(_sql.lock, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return None if row is None else _record(row)

    async def hold_schedules(self, conn: Connection, scope: Scope, name: str) -> None:
        """Let none of its schedules fire before the transaction ends: to be called before the workflow is locked."""
        await conn.fetch(_sql.hold_schedules, tenant=scope.tenant, namespace=scope.namespace, name=name)

    async def page(self, scope: Scope, *, q: str | None, after: str | None, limit: int) -> list[WorkflowRecord]:
        """Newest first, beginning after the id ``after``. ``q``: text in name or description."""
        rows = await self._db.fetch(
            _sql.list, tenant=scope.tenant, namespace=scope.namespace, q=q, after=after, limit=limit
        )
        return [_record(row) for row in rows]

    async def update(self, conn: Connection, workflow_id: str, settings: WorkflowSettings) -> WorkflowRecord:
        return _found(await conn.one(_sql.update, id=workflow_id, etag=new_id(), **_columns(settings)))

    async def delete(self, conn: Connection, workflow_id: str) -> None:
        """Its name is free when the transaction commits; its schedules go with it, its runs stay."""
        await conn.run(_sql.delete_schedules, id=workflow_id)
        await conn.run(_sql.delete, id=workflow_id, etag=new_id())

    async def publish(
        self, conn: Connection, workflow: WorkflowRecord, definition: Mapping[str, Any], created_by: str
    ) -> int:
        """The version with this definition: the next one, or one that is there already."""
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
        if (row := await conn.one(_sql.same, id=workflow.id, digest=digest)) is not None:
            return int(row["version"])
        await conn.run(_sql.take_number, id=workflow.id, etag=new_id())
        await conn.run(
            _sql.insert_version,
            id=workflow.id,
            version=workflow.next_version,
            tenant=workflow.scope.tenant,
            namespace=workflow.scope.namespace,
            definition=Json(definition),
            digest=digest,
            created_by=created_by,
        )
        return workflow.next_version

    async def activate(self, conn: Connection, workflow_id: str, version: int) -> WorkflowRecord:
        return _found(await conn.one(_sql.activate, id=workflow_id, version=version, etag=new_id()))

    async def version(self, workflow_id: str, version: int, conn: Connection | None = None) -> VersionRecord | None:
        row = await (conn or self._db).one(_sql.version, id=workflow_id, version=version)
        return None if row is None else VersionRecord(**row)

    async def versions(self, workflow_id: str, *, before: int | None, limit: int) -> list[VersionSummary]:
        """Newest first."""
        rows = await self._db.fetch(_sql.versions, id=workflow_id, before=before, limit=limit)
        return [VersionSummary(**row) for row in rows]

    async def active_runs(
        self, workflow_id: str, *, after: str | None = None, limit: int, conn: Connection | None = None
    ) -> list[str]:
        """Ids of runs that have not ended, oldest first."""
        rows = await (conn or self._db).fetch(_sql.active_runs, id=workflow_id, after=after, limit=limit)
        return [row["id"] for row in rows]

    async def missing(
        self, scope: Scope, names: Mapping[Referred, Collection[str]], conn: Connection | None = None
    ) -> dict[Referred, set[str]]:
        """Of each kind those of the names that do not exist."""
        source = conn or self._db
        found: dict[Referred, set[str]] = {}
        for kind, wanted in names.items():
            rows = await source.fetch(
                _EXISTING[kind], tenant=scope.tenant, namespace=scope.namespace, names=list(wanted)
            )
            found[kind] = set(wanted) - {row["name"] for row in rows}
        return found


_EXISTING: Mapping[Referred, str] = {
    "function": _sql.existing_functions,
    "workflow": _sql.existing_workflows,
    "topic": _sql.existing_topics,
}
_SETTINGS = tuple(field.name for field in fields(WorkflowSettings))


def _columns(settings: WorkflowSettings) -> dict[str, Any]:
    return {**asdict(settings), "tags": Jsonb(dict(settings.tags))}


def _found(row: Row | None) -> WorkflowRecord:
    if row is None:
        raise LookupError("the workflow is gone although it was locked")
    return _record(row)


def _record(row: Row) -> WorkflowRecord:
    return WorkflowRecord(
        id=str(row["id"]),
        scope=Scope(row["tenant_id"], row["namespace"]),
        name=row["name"],
        settings=WorkflowSettings(**{name: row[name] for name in _SETTINGS}),
        active_version=row["active_version"],
        next_version=row["next_version"],
        etag=row["etag"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
