"""Numbers that belong to the whole platform: what waits, who leads, who is there."""

from collections.abc import Collection
from dataclasses import dataclass, field

from nova.store.db import Database, Queries
from nova.store.outbox import OutboxStore

_q = Queries("gauges")
_SUBSCRIPTIONS = 1000


@dataclass(frozen=True, slots=True)
class PlatformNumbers:
    """``jobs`` by tenant and status, ``dead_deliveries`` by tenant, ``leaders`` as duty, node and whether the
    lease holds, ``nodes`` by plane and state.

    ``rollup_lag_s`` is the age of the oldest call record that no time series counts yet.
    """

    jobs: list[tuple[str, str, int]]
    dead_deliveries: dict[str, int]
    leaders: list[tuple[str, str, bool]]
    nodes: list[tuple[str, str, int]]
    rollup_lag_s: float
    lags: list[tuple[str, str, str, int]] = field(default_factory=list)
    """of subscriptions, the furthest behind first: tenant, topic, name, messages after the cursor; at most 1000"""
    dead_messages: int = 0


class GaugeStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def read(self, tenants: Collection[str] | None = None) -> PlatformNumbers:
        """``tenants`` None: everybody's jobs. A few queries, small but for that of dead letters."""
        dead = await OutboxStore(self._db).dead()
        async with self._db.connection() as conn:
            jobs = await conn.fetch(_q.backlog, tenants=None if tenants is None else list(tenants))
            leaders = await conn.fetch(_q.leaders)
            nodes = await conn.fetch(_q.nodes)
            lag = await conn.one(_q.rollup_lag)
            wanted = None if tenants is None else list(tenants)
            lags = await conn.fetch(_q.subscriptions, tenants=wanted, limit=_SUBSCRIPTIONS)
            dead_messages = await conn.one(_q.dead_messages, tenants=wanted)
        return PlatformNumbers(
            jobs=[(row["tenant_id"], row["status"], row["jobs"]) for row in jobs],
            dead_deliveries={name: count for name, count in dead.items() if tenants is None or name in tenants},
            leaders=[(row["duty"], row["node"], row["held"]) for row in leaders],
            nodes=[(row["plane"], row["state"], row["nodes"]) for row in nodes],
            rollup_lag_s=lag["seconds"] if lag else 0.0,
            lags=[(row["tenant_id"], row["topic"], row["subscription"], row["lag"]) for row in lags],
            dead_messages=dead_messages["dead"] if dead_messages else 0,
        )
