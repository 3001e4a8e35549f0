"""The ``leases`` table: who is in charge of each duty, and until when. The rules are :mod:`nova.work.leader`'s."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import dict_row

from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

_sql = Queries("leases")
_LOCK_TIMEOUT_MS = 500
"""A renewal waits no longer than this for a row that somebody is just taking over."""


@dataclass(frozen=True, slots=True)
class Leader:
    """Who holds a duty now. ``owner`` is the id of a process, ``node`` the name of its node."""

    duty: str
    owner: str
    node: str
    fence: int
    until: datetime
    acquired_at: datetime


class LeaseSession:
    """One owner's claims, on a connection of its own: no queue of other work delays a renewal.

    Connects when first used. Every method raises psycopg's error when the server does not answer; the next use connects
    again.
    """

    def __init__(self, dsn: str, owner: str, node: str) -> None:
        self._dsn = dsn
        self._owner = owner
        self._node = node
        self._raw: psycopg.AsyncConnection[Row] | None = None

    async def claim(self, duties: Collection[str], lease_s: float) -> dict[str, int]:
        """Take those of ``duties`` that are free; the new fence of each that is ours now."""
        conn = await self._connection()
        params = {"duties": list(duties), "owner": self._owner, "node": self._node, "lease_s": lease_s}
        return {row["duty"]: row["fence"] for row in await conn.fetch(_sql.claim, **params)}

    async def renew(self, held: Mapping[str, int], lease_s: float) -> set[str]:
        """Prolong what is held under these fences; the duties that are still ours."""
        conn = await self._connection()
        params = {"duties": list(held), "fences": list(held.values()), "owner": self._owner, "lease_s": lease_s}
        return {row["duty"] for row in await conn.fetch(_sql.renew, **params)}

    async def release(self, duty: str, fence: int) -> None:
        """Give a duty up and tell those who stand by."""
        conn = await self._connection()
        await conn.one(_sql.release, duty=duty, owner=self._owner, fence=fence, channel=Channel.LEASES)

    async def close(self) -> None:
        """Also after an error or a call that was cancelled: the next use begins with a fresh connection."""
        raw, self._raw = self._raw, None
        if raw is not None:
            await raw.close()

    async def _connection(self) -> Connection:
        if self._raw is None or self._raw.closed:
            self._raw = await psycopg.AsyncConnection[Row].connect(
                self._dsn,
                autocommit=True,
                row_factory=dict_row,
                application_name="nova leases",
                options=f"-c lock_timeout={_LOCK_TIMEOUT_MS} -c timezone=UTC",
            )
        return Connection(self._raw)


async def hold(conn: Connection, duty: str, owner: str, fence: int, *, idle_s: float) -> bool:
    """Is this still the duty's fence? If so nobody else can take the duty before this transaction ends.

    The server ends the transaction when its client says nothing for ``idle_s`` seconds: one that was stopped in the middle
    of it must not keep others out.
    """
    idle_ms = int(idle_s * 1000)
    return await conn.one(_sql.hold, duty=duty, owner=owner, fence=fence, idle_ms=idle_ms) is not None


async def leaders(db: Database) -> list[Leader]:
    """Every duty that is held now, by name."""
    return [Leader(**row) for row in await db.fetch(_sql.leaders)]
