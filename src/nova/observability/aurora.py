"""What aurora says over HTTP by itself: ``GET /health``, its own state, and ``GET /metrics``, the series of every process."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from nova.api.system import Standing
from nova.errors import NovaError
from nova.http.body import ClientGone
from nova.http.exchange import Exchange
from nova.observability.scrape import Scraper
from nova.payload import encode

Admitted = Callable[[Mapping[bytes, bytes], str | None], None]
"""Takes a request's headers and its peer's address; raises NovaError when it may not see every tenant's numbers."""
_METHODS = ("GET", "HEAD")


class AuroraApp:
    """ASGI. ``standing`` tells how this process is; other paths go to ``others``, or are unknown without it.

    ``/health`` and the probes below it are for everybody and say no more than a state; ``/metrics`` asks ``admit``.
    """

    def __init__(
        self,
        scraper: Scraper,
        *,
        admit: Admitted,
        standing: Callable[[], Mapping[str, Standing]],
        others: ASGIApp | None = None,
    ) -> None:
        self._scraper = scraper
        self._admit = admit
        self._standing = standing
        self._others = others
        self._paths = {
            "/health": self._health,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/health/startup": self._ready,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = self._paths.get(scope["path"])
        if answer is None and self._others is not None:
            await self._others(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        try:
            if answer is None:
                raise NovaError("route_not_found", "there is no such route")
            if exchange.method not in _METHODS:
                raise NovaError("method_not_allowed", "allowed here: GET", extra={"allow": ["GET"]})
            await answer(exchange)
        except ClientGone:
            return
        except NovaError as refusal:
            await exchange.refuse(refusal)

    async def _health(self, exchange: Exchange) -> None:
        parts = dict(self._standing())
        status = self._status(parts)
        body: dict[str, Any] = {"status": status, "parts": parts}
        await exchange.answer(503 if status == "down" else 200, [(b"content-type", b"application/json")], encode(body))

    async def _live(self, exchange: Exchange) -> None:
        await exchange.answer(200, [(b"content-type", b"application/json")], encode({"status": "ok"}))

    async def _ready(self, exchange: Exchange) -> None:
        status = self._status(self._standing())
        code = 503 if status == "down" else 200
        await exchange.answer(code, [(b"content-type", b"application/json")], encode({"status": status}))

    @staticmethod
    def _status(parts: Mapping[str, Standing]) -> Standing:
        states = set(parts.values())
        return "down" if "down" in states else "degraded" if "degraded" in states else "ok"

    async def _metrics(self, exchange: Exchange) -> None:
        self._admit(exchange.headers, exchange.peer)
        accept = exchange.headers.get(b"accept", b"").decode("latin-1")
        text, content_type = await self._scraper.scrape(accept)
        headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
        await exchange.answer(200, headers, text)
