"""What every process counts, as one answer: comets are asked over ProxyHTTP, as the caller who wants to know or as this process;
all others tell it in their rows."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import structlog

from nova.api.system import Stats
from nova.api.table import Empty
from nova.app.cluster import SERIES
from nova.app.core import Stores, Trust
from nova.domain.identity import Identity, Scope
from nova.errors import NovaError
from nova.http.handler import Req
from nova.observability.gauges import PlatformGauges
from nova.observability.merged import joined_pools, merged_stats
from nova.observability.scrape import Scraper, Source
from nova.rpc.comets import Comets
from nova.rpc.roster import Connection
from nova.security import access
from nova.security.assertion import HEADER
from nova.security.guards import Caller
from nova.store.gauges import GaugeStore
from nova.store.nodes import NodeRecord, NodeStore

log = structlog.get_logger(__name__)
ASK_TIMEOUT_S = 2.0
PLATFORM = Caller(Identity("service:platform", frozenset(), grants=(access.grant("viewer"),), platform=True), None)
"""This process, when nobody's request is behind a question."""


def told(record: NodeRecord) -> Source:
    """The series that a process wrote into its row."""

    async def read() -> str:
        return str(record.load[SERIES])

    return Source({"node": record.address}, read)


class Asking:
    """``comets`` are those that speak now; one that does not answer in time is left out."""

    def __init__(self, comets: Comets, trust: Trust, stores: Stores, *, namespace: str) -> None:
        self._comets = comets
        self._trust = trust
        self._nodes = NodeStore(stores.db)
        self._gauges = PlatformGauges(GaugeStore(stores.db), namespace=namespace)
        self._namespace = namespace

    async def __call__(self, req: Req[Any, Any], path: str, accept: str) -> Mapping[str, bytes]:
        connections = self._comets.connections()
        caller = Caller(req.identity, None)
        bodies = await asyncio.gather(*(self._get(c, path, accept, caller, req.scope) for c in connections.values()))
        return {name: body for name, body in zip(connections, bodies, strict=True) if body is not None}

    async def stats(self, *, joined: bool) -> Stats:
        """The pools of all comets, as this process sees them; ``joined``: see :class:`MergedHandlers`."""
        connections = self._comets.connections().values()
        bodies = await asyncio.gather(
            *(self._get(c, "/stats", "application/json", PLATFORM, None) for c in connections)
        )
        stats = merged_stats([Stats.model_validate_json(body) for body in bodies if body is not None])
        return joined_pools(stats) if joined else stats

    async def scrape(self, req: Req[Empty, Empty]) -> tuple[bytes, str]:
        """The series that the caller may see, of every process."""
        scraper = Scraper(lambda: self.sources(Caller(req.identity, None)), namespace=self._namespace)
        return await scraper.scrape(req.http.headers.get("accept", ""))

    async def sources(self, caller: Caller = PLATFORM) -> Sequence[Source]:
        """Everything that series are read from. What other processes than comets tell is not told apart by tenant, so only
        callers who see all of them get it."""
        tenants = caller.identity.visible_tenants

        def source(name: str, connection: Connection) -> Source:
            async def read() -> str:
                body = await self._get(connection, "/metrics/prometheus", "text/plain", caller, None)
                if body is None:
                    raise NovaError("dependency_unavailable", f"{name} does not answer")
                return body.decode()

            return Source({"node": name}, read)

        found = [Source({"node": "platform"}, lambda: self._gauges.read(tenants))]
        found += [source(name, connection) for name, connection in self._comets.connections().items()]
        if tenants is None:
            found += [told(record) for record in await self._nodes.telling()]
        return found

    async def _get(
        self, connection: Connection, path: str, accept: str, caller: Caller, scope: Scope | None
    ) -> bytes | None:
        headers = {
            "accept": accept,
            "authorization": self._trust.token.bearer.decode(),
            HEADER.decode(): self._trust.assertions.sign(caller, scope),
        }
        transport = httpx.ASGITransport(connection.proxy)
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                httpx.AsyncClient(transport=transport, base_url="http://comet") as client,
            ):
                answer = await client.get(path, headers=headers)
        except (NovaError, TimeoutError, httpx.HTTPError) as error:
            log.warning("a comet does not answer", path=path, error=repr(error))
            return None
        return answer.content if answer.status_code == 200 else None
