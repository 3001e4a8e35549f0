"""Who refers to a function by its name, so that it is not deleted under them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nova.domain.identity import Scope
from nova.store.db import Connection, Database, Queries
from nova.store.subscriptions import SubscriptionStore
from nova.store.triggers import TriggerStore

_sql = Queries("references")
_PATHS = {
    "subscription": "/subscriptions/{id}",
    "trigger": "/triggers/{id}",
    "workflow": "/workflows/{name}",
    "destination": "/functions/{name}",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """``destination``: another function, whose asynchronous calls end there."""

    kind: Literal["subscription", "trigger", "workflow", "destination"]
    id: str
    name: str

    @property
    def path(self) -> str:
        """Where it can be looked at and changed."""
        return _PATHS[self.kind].format(id=self.id, name=self.name)


class References:
    def __init__(self, db: Database) -> None:
        self._subscriptions = SubscriptionStore(db)
        self._triggers = TriggerStore(db)

    async def of_function(self, conn: Connection, scope: Scope, name: str) -> list[Reference]:
        """By kind and name. Workflows count by their active version."""
        rows = await conn.fetch(_sql.of_function, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return [Reference(**row) for row in rows]

    async def delete(self, conn: Connection, scope: Scope, references: Sequence[Reference]) -> None:
        """Those of them that are nothing without the function: subscriptions and triggers."""
        for reference in references:
            if reference.kind == "subscription":
                await self._subscriptions.delete(conn, reference.id)
            elif reference.kind == "trigger":
                record = await self._triggers.lock(conn, scope, reference.id)
                if record is not None:
                    await self._triggers.delete(conn, record)
