"""The producer's side of the ``work`` table; the consumer's is :mod:`nova.work.queue`.

A noun's store calls :func:`enqueue` in the transaction that writes the noun's own row, so both exist or neither does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from nova.domain.identity import Scope
from nova.ids import new_id
from nova.store.db import Connection, Queries
from nova.store.listen import Channel

CHANNEL = Channel.WORK
"""Payload: ``{"kind"}`` for new work, ``{"kind", "withdrawn": subject}`` for work taken back."""

sql = Queries("work")


@dataclass(frozen=True, slots=True)
class Taker:
    """Who runs the first ``most`` of some new items at once, leased for so many seconds, if nothing else has to come first."""

    owner: str
    lease_s: float
    most: int


NOBODY = Taker("", 0.0, 0)


async def enqueue(
    conn: Connection, kind: str, scope: Scope, subject: str, payload: Mapping[str, Any], *, delay_s: float = 0
) -> str:
    """Accept work on ``subject`` (the id of the noun's row); at most one row for each kind and subject."""
    work_id = new_id()
    await conn.run(
        sql.enqueue,
        id=work_id,
        kind=kind,
        tenant=scope.tenant,
        namespace=scope.namespace,
        subject=subject,
        payload=Jsonb(dict(payload)),
        delay_s=delay_s,
    )
    await tell_due(conn, kind)
    return work_id


async def tell_due(conn: Connection, kind: str) -> None:
    """Whoever runs work of this kind looks for it when this commits."""
    await conn.notify(CHANNEL, json.dumps({"kind": kind}))


async def withdraw(conn: Connection, kind: str, scope: Scope, subject: str) -> bool:
    """Take work back, running or not. Whoever runs it loses the lease and is told at once. False: there was none."""
    gone = await conn.run(sql.withdraw, kind=kind, tenant=scope.tenant, namespace=scope.namespace, subject=subject)
    if gone:
        await tell_withdrawn(conn, kind, subject)
    return gone > 0


async def tell_withdrawn(conn: Connection, kind: str, subject: str) -> None:
    """The work row was deleted by a statement of the noun's own: whoever runs it is told when this commits."""
    await conn.notify(CHANNEL, json.dumps({"kind": kind, "withdrawn": subject}))
