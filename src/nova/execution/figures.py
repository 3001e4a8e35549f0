"""Figures of the execution plane: one function over a range of time, and the pools as they are now."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from nova.api.system import FunctionMetrics, PoolStats, RangeFigures, RangeQuery, Stats, VersionFigures
from nova.api.table import Empty
from nova.clock import Clock
from nova.errors import invalid
from nova.execution.exposition import Exposition
from nova.execution.records import known_function
from nova.http.handler import Req, handles
from nova.security import access
from nova.store.db import Row
from nova.store.invocations import InvocationStore

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
MAX_RANGE = timedelta(days=400)
_COUNTS = ("instances", "booting", "busy", "draining", "stopping", "inflight")


class FigureHandlers:
    """``fleet`` gives the pools as they are now (``Fleet.stats``); ``settle`` makes this process's records readable."""

    def __init__(
        self,
        store: InvocationStore,
        exposition: Exposition,
        fleet: Callable[[], Mapping[str, Any]],
        settle: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._exposition = exposition
        self._fleet = fleet
        self._settle = settle
        self._clock = clock

    @handles("function.metrics")
    async def function(self, req: Req[Empty, RangeQuery]) -> FunctionMetrics:
        name = req.params["name"]
        span = parse_range(req.query.range)
        function_id = await known_function(self._store, req.scope, name)
        await self._settle()
        until = self._clock.now()
        # a record made a moment ago may carry a time that rounds up to now
        rows = await self._store.figures(function_id, until - span, until + timedelta(milliseconds=1))
        total, *versions = rows
        return FunctionMetrics(
            function=name,
            range=req.query.range,
            since=until - span,
            until=until,
            versions=[VersionFigures(version=row["version"], **_figures(row)) for row in versions],
            since_start=self._exposition.function(req.scope, name),
            **_figures(total),
        )

    @handles("stats.get")
    async def stats(self, req: Req[Empty, Empty]) -> Stats:
        tenants = req.identity.visible_tenants
        shown = [
            pool
            for pool in self._fleet()["pools"]
            if (tenants is None or pool["tenant"] in tenants)
            and access.allowed(req.identity, "metrics:read", pool["function"])
        ]
        counts = {name: sum(pool[name] for pool in shown) for name in _COUNTS}
        return Stats(
            **counts,
            idle=sum(pool["ready"] for pool in shown),
            queue_depth=sum(pool["waiting"] for pool in shown),
            active_vms=counts["instances"],
            total_pools=len(shown),
            pools=[_pool(pool) for pool in shown],
        )


def parse_range(text: str) -> timedelta:
    """``90m``, ``24h``, ``7d``; at most :data:`MAX_RANGE`."""
    span = int(text[:-1]) * _UNITS[text[-1]]
    if span > MAX_RANGE:
        raise invalid("range", f"at most {MAX_RANGE.days}d")
    return span


def _pool(pool: Mapping[str, Any]) -> PoolStats:
    return PoolStats(
        tenant=pool["tenant"],
        namespace=pool["namespace"],
        function=pool["function"],
        version=pool["version"],
        idle=pool["ready"],
        queue_depth=pool["waiting"],
        **{name: pool[name] for name in _COUNTS},
    )


def _figures(row: Row) -> dict[str, Any]:
    percentiles = row["percentiles"] or (None, None, None)
    names = [name for name in RangeFigures.model_fields if not name.startswith("p")]
    return {
        **{name: row[name] for name in names},
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
    }
