"""Numbers of several comets as one answer: each is asked with the caller's own identity, and what they say is added up."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from starlette.responses import Response

from nova.api.system import CallTotals, InstanceCounts, Metrics, Stats
from nova.api.table import Empty, Model
from nova.http.handler import Req, handles
from nova.observability.readings import wants_text

Ask = Callable[[Req[Empty, Empty], str, str], Awaitable[Mapping[str, bytes]]]
"""``(request, path, accept)`` → the bodies of the 200 answers, by node. Nodes that do not answer are left out."""
Scrape = Callable[[Req[Empty, Empty]], Awaitable[tuple[bytes, str]]]
"""The series of every node that the caller may see, as one text, and its content type."""


class MergedHandlers:
    """``/metrics``, ``/metrics/prometheus`` and ``/stats`` of a cluster."""

    def __init__(self, ask: Ask, scrape: Scrape) -> None:
        self._ask = ask
        self._scrape = scrape

    @handles("metrics.get")
    async def metrics(self, req: Req[Empty, Empty]) -> Metrics | Response:
        if wants_text(req.http.headers.get("accept", "")):
            return await self.prometheus(req)
        answers = await self._ask(req, "/metrics", "application/json")
        return merged_metrics([Metrics.model_validate_json(body) for body in answers.values()])

    @handles("metrics.prometheus")
    async def prometheus(self, req: Req[Empty, Empty]) -> Response:
        text, content_type = await self._scrape(req)
        return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})

    @handles("stats.get")
    async def stats(self, req: Req[Empty, Empty]) -> Stats:
        answers = await self._ask(req, "/stats", "application/json")
        return merged_stats([Stats.model_validate_json(body) for body in answers.values()])


def merged_totals(parts: Sequence[CallTotals]) -> dict[str, float]:
    """Counts add up; the shortest and the longest call are those of all that have seen a call."""
    called = [part for part in parts if part.total_invocations]
    summed = {name: sum(getattr(part, name) for part in parts) for name in CallTotals.model_fields}
    summed["min_latency_ms"] = min((part.min_latency_ms for part in called), default=0)
    summed["max_latency_ms"] = max((part.max_latency_ms for part in called), default=0)
    return summed


def merged_metrics(parts: Sequence[Metrics]) -> Metrics:
    names = sorted({name for part in parts for name in part.functions})
    return Metrics.model_validate(
        {
            **merged_totals(parts),
            **_sums(parts, ("vms_created", "vms_stopped", "vms_crashed", "snapshots_hit")),
            "uptime_s": max((part.uptime_s for part in parts), default=0),
            "functions": {
                name: merged_totals([part.functions[name] for part in parts if name in part.functions])
                for name in names
            },
        }
    )


def merged_stats(parts: Sequence[Stats]) -> Stats:
    """Pools of every node stand side by side: a pool has exactly one owner."""
    return Stats.model_validate(
        {
            **_sums(parts, (*InstanceCounts.model_fields, "active_vms", "total_pools")),
            "pools": [pool.model_dump() for part in parts for pool in part.pools],
        }
    )


def _sums(parts: Sequence[Model], names: Iterable[str]) -> dict[str, int]:
    return {name: sum(getattr(part, name) for part in parts) for name in names}
