"""Functions that exist in the database and nowhere else, for tests of the queue."""

from psycopg.types.json import Jsonb

from nova.domain.call import AsyncOptions
from nova.domain.identity import Scope
from nova.ids import new_id
from nova.store.asyncs import NewJob
from nova.store.db import Database


async def function(db: Database, name: str = "f", *, scope: Scope = Scope(), **recorded: object) -> str:
    """A function's row, without versions; its id. ``recorded`` are settings such as ``async_policy``."""
    function_id = new_id()
    await db.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)"
        " VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(data)s, '', 'test')",
        id=function_id,
        tenant=scope.tenant,
        namespace=scope.namespace,
        name=name,
        data=Jsonb({"recorded": recorded}),
    )
    return function_id


async def tenant(db: Database, name: str) -> Scope:
    """Another tenant with namespace ``default``."""
    await db.run("INSERT INTO tenants (id, name) VALUES (%(name)s, %(name)s)", name=name)
    await db.run("INSERT INTO namespaces (tenant_id, name) VALUES (%(name)s, 'default')", name=name)
    return Scope(name)


def job(
    payload: bytes = b"{}", *, function: str = "f", scope: Scope = Scope(), depth: int = 0, **options: object
) -> NewJob:
    return NewJob(
        id=new_id(),
        scope=scope,
        function=function,
        payload=payload,
        options=AsyncOptions(**options),  # type: ignore[arg-type]
        caller="key:test",
        source="api",
        depth=depth,
    )
