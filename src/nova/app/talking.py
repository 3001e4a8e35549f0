"""What the workers of one ``nova up`` say to each other beside calls: one path of the application behind their unix sockets."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from nova.errors import NovaError
from nova.rpc.comets import Comets
from nova.rpc.roster import Connection

PATH = "/-/worker"
TIMEOUT_S = 60.0
Answerer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Listening:
    """``app``, with :data:`PATH` in front. Only workers reach it: the server behind the socket wants the service token."""

    def __init__(self, app: ASGIApp, answer: Answerer) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        said = await Request(scope, receive).json()
        await JSONResponse(await self._answer(said))(scope, receive, send)


class Others:
    """The other workers, of ``count`` in all."""

    def __init__(self, workers: Comets, own: str, count: int) -> None:
        self._workers = workers
        self._own = own
        self._count = count

    async def tell(self, said: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """What each of them answers. Raises ``dependency_unavailable`` unless all do."""
        there = [c for name, c in self._workers.connections().items() if name != self._own]
        if len(there) != self._count - 1:
            raise NovaError("dependency_unavailable", "another worker is not there at the moment", retry_after_s=1)
        return await asyncio.gather(*(_ask(connection, said) for connection in there))

    async def tell_those_there(self, said: dict[str, Any]) -> None:
        """Wait until everybody who can has done it."""
        there = [c for name, c in self._workers.connections().items() if name != self._own]
        for answer in await asyncio.gather(*(_ask(c, said) for c in there), return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, NovaError):
                raise answer


async def _ask(connection: Connection, said: dict[str, Any]) -> dict[str, Any]:
    transport = httpx.ASGITransport(connection.proxy)
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(transport=transport, base_url="http://worker") as client,
        ):
            answer = await client.post(PATH, json=said)
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found
    except (TimeoutError, httpx.HTTPError) as error:
        raise NovaError("dependency_unavailable", f"another worker does not answer: {error!r}") from None
