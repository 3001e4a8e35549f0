"""A server behind a proxy, and the proxy in front of it, both on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nova.clock import SYSTEM_CLOCK
from nova.errors import NovaError
from nova.http.body import ClientGone
from nova.http.exchange import Exchange
from nova.http.protocol import ConnectionLimits
from nova.http.proxy import HttpProxy
from nova.security.assertion import Assertions
from nova.security.service import ServiceToken
from tests.http.harness import serve

TOKEN = ServiceToken(b"a-token-for-tests-only")
ASSERTIONS = Assertions(TOKEN, SYSTEM_CLOCK)


@dataclass
class Upstream:
    """An application that shows what reached it, by path."""

    seen: list[dict[str, Any]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._route(scope, receive, send)
        except ClientGone:
            return

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/parts":
            await self._parts(receive, send)
        elif path == "/wait":
            await self._wait(receive)
        elif path == "/broken":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            raise RuntimeError("cut off")
        elif path == "/refuse":
            await self._answer(scope, send, 409, b"no")
        elif path.startswith("/status/"):
            await self._answer(scope, send, int(path[8:]), b"")
        elif path == "/bytes":
            await self._answer(scope, send, 200, b"x" * 3_000_000)
        elif path == "/first":
            message = await receive()
            self.began.set()
            while message.get("more_body"):
                message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                raise ClientGone
            await self._answer(scope, send, 200, b"all")
        else:
            await self._echo(scope, receive, send)

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        shown = {
            "method": scope["method"],
            "raw_path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
            "size": len(body),
        }
        self.seen.append(shown)
        await self._answer(scope, send, 200, json.dumps(shown).encode())

    async def _parts(self, receive: Any, send: Any) -> None:
        """A stream that has begun and goes on when the gate opens."""
        head = [(b"content-type", b"text/event-stream"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        opened, left = asyncio.create_task(self.gate.wait()), asyncio.create_task(_left(receive))
        await asyncio.wait([opened, left], return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            self.gone.set()
        opened.cancel()
        left.cancel()
        await send({"type": "http.response.body", "body": b"last", "more_body": False})

    async def _wait(self, receive: Any) -> None:
        self.began.set()
        await _left(receive)
        self.gone.set()
        raise ClientGone

    async def _answer(self, scope: Any, send: Any, status: int, body: bytes) -> None:
        headers = [(b"x-answer", b"yes")]
        if status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Refusing:
    """ASGI around a proxy: refusals become problem documents, as the binder does it."""

    def __init__(self, proxy: HttpProxy) -> None:
        self._proxy = proxy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._proxy(scope, receive, exchange.send)
        except ClientGone:
            return
        except NovaError as exc:
            await exchange.refuse(exc)


@asynccontextmanager
async def proxied(port: int, limits: ConnectionLimits | None = None, **options: Any) -> AsyncIterator[int]:
    """The port of a proxy in front of ``port``."""
    proxy = HttpProxy(f"http://127.0.0.1:{port}", TOKEN, ASSERTIONS, name="the upstream", **options)
    await proxy.start()
    try:
        async with serve(Refusing(proxy), limits) as front:
            yield front
    finally:
        await proxy.close()
