"""Asking every comet the same question over ProxyHTTP, as the caller who wants to know, or as this process."""

import asyncio
from collections.abc import Mapping, Sequence

import httpx
import structlog

from nova.api.table import Empty
from nova.app.core import Trust
from nova.domain.identity import Identity, Scope
from nova.errors import NovaError
from nova.http.handler import Req
from nova.observability.scrape import Scraper, Source
from nova.rpc.comets import Comets
from nova.rpc.roster import Connection
from nova.security import access
from nova.security.assertion import HEADER
from nova.security.guards import Caller

log = structlog.get_logger(__name__)
ASK_TIMEOUT_S = 2.0
PLATFORM = Caller(Identity("service:platform", frozenset(), grants=(access.grant("viewer"),), platform=True), None)
"""This process, when nobody's request is behind a question."""


class Asking:
    """``comets`` are those that speak now; one that does not answer in time is left out."""

    def __init__(self, comets: Comets, trust: Trust, *, namespace: str) -> None:
        self._comets = comets
        self._trust = trust
        self._namespace = namespace

    async def __call__(self, req: Req[Empty, Empty], path: str, accept: str) -> Mapping[str, bytes]:
        connections = self._comets.connections()
        caller = Caller(req.identity, None)
        bodies = await asyncio.gather(*(self._get(c, path, accept, caller, req.scope) for c in connections.values()))
        return {name: body for name, body in zip(connections, bodies, strict=True) if body is not None}

    async def scrape(self, req: Req[Empty, Empty]) -> tuple[bytes, str]:
        """The series that the caller may see, of every comet."""
        scraper = Scraper(lambda: self.sources(Caller(req.identity, None)), namespace=self._namespace)
        return await scraper.scrape(req.http.headers.get("accept", ""))

    async def sources(self, caller: Caller = PLATFORM) -> Sequence[Source]:
        """Every comet as something that series are read from."""

        def source(name: str, connection: Connection) -> Source:
            async def read() -> str:
                body = await self._get(connection, "/metrics/prometheus", "text/plain", caller, None)
                if body is None:
                    raise NovaError("dependency_unavailable", f"{name} does not answer")
                return body.decode()

            return Source({"node": name}, read)

        return [source(name, connection) for name, connection in self._comets.connections().items()]

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
