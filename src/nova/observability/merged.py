"""Numbers of several comets as one answer: each is asked with the caller's own identity, and what they say is added up."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from nova.api.system import CallTotals, FunctionMetrics, InstanceCounts, Metrics, PoolStats, RangeQuery, Stats
from nova.api.table import Empty, Model
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.observability.readings import wants_text

AskAny = Callable[[Req[Any, Any], str, str], Awaitable[Mapping[str, bytes]]]
Ask = Callable[[Req[Empty, Empty], str, str], Awaitable[Mapping[str, bytes]]]
"""``(request, path, accept)`` → the bodies of the 200 answers, by node. Nodes that do not answer are left out."""
Scrape = Callable[[Req[Empty, Empty]], Awaitable[tuple[bytes, str]]]
"""The series of every node that the caller may see, as one text, and its content type."""


Local = Callable[[Req[Empty, RangeQuery]], Awaitable[FunctionMetrics]]


class MergedFunction:
    """``/functions/{name}/metrics`` of several processes on one database: what is in it is the same for all, what each has
    counted since it started is added up."""

    def __init__(self, ask: AskAny, local: Local) -> None:
        self._ask = ask
        self._local = local

    @handles("function.metrics")
    async def function(self, req: Req[Empty, RangeQuery]) -> FunctionMetrics:
        found = await self._local(req)
        path = f"/functions/{quote(req.params['name'])}/metrics?range={quote(req.query.range)}"
        answers = (await self._ask(req, path, "application/json")).values()
        parts = [FunctionMetrics.model_validate_json(body).since_start for body in answers]
        return found.model_copy(update={"since_start": CallTotals.model_validate(merged_totals(parts))})


class MergedSnapshots:
    """``/snapshots`` of several processes, each of which has some of them: newest first, page by page."""

    def __init__(self, ask: AskAny) -> None:
        self._ask = ask

    @handles("snapshot.list")
    async def list_snapshots(self, req: Req[Empty, Any]) -> Answer:
        answers = await self._ask(req, f"/snapshots?{req.http.url.query}", "application/json")
        pages = [json.loads(body) for body in answers.values()]
        found = [(datetime.fromisoformat(item["created_at"]), item) for page in pages for item in page["items"]]
        found.sort(key=lambda pair: pair[0], reverse=True)
        shown, cursor = paging.cut(found, req.query.limit, lambda pair: (pair[0], ""))
        if cursor is None and shown and any(page["next_cursor"] for page in pages):
            cursor = paging.encode([shown[-1][0].isoformat(), ""])
        return Answer({"items": [item for _, item in shown], "next_cursor": cursor})


class MergedHandlers:
    """``/metrics``, ``/metrics/prometheus`` and ``/stats`` of a cluster. ``joined``: what several have of one version's
    instances is one pool, because they are workers of one server."""

    def __init__(self, ask: Ask, scrape: Scrape, *, joined: bool = False) -> None:
        self._ask = ask
        self._scrape = scrape
        self._joined = joined

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
        merged = merged_stats([Stats.model_validate_json(body) for body in answers.values()])
        return joined_pools(merged) if self._joined else merged


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


def joined_pools(stats: Stats) -> Stats:
    """One row for each version."""
    rows: dict[tuple[str, ...], list[PoolStats]] = {}
    for pool in stats.pools:
        rows.setdefault((pool.tenant, pool.namespace, pool.function, str(pool.version)), []).append(pool)
    names = InstanceCounts.model_fields
    pools = [parts[0].model_copy(update=_sums(parts, names)) for parts in rows.values()]
    return stats.model_copy(update={"pools": pools, "total_pools": len(pools)})


def _sums(parts: Sequence[Model], names: Iterable[str]) -> dict[str, int]:
    return {name: sum(getattr(part, name) for part in parts) for name in names}
