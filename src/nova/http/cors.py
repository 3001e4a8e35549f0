"""Pages of other origins: only those in ``http.cors_origins`` may read answers."""

from collections.abc import Iterable

from nova.http.exchange import Exchange, HeaderList
from nova.http.guard import Guard
from nova.security.guards import Headers

_PREFLIGHT_AGE_S = 600


def answer_headers(door: Guard, headers: Headers) -> HeaderList:
    """What an answer says to the page that asked; nothing when its origin is not allowed."""
    origin = headers.get(b"origin")
    if origin is None or not door.allows_origin(origin):
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    ]


def is_preflight(exchange: Exchange) -> bool:
    return exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.headers


async def preflight(exchange: Exchange, allow: Iterable[str]) -> None:
    """Tell a browser which requests it may send."""
    headers = [
        (b"access-control-allow-methods", ", ".join(allow).encode()),
        (b"access-control-allow-headers", exchange.headers.get(b"access-control-request-headers", b"*")),
        (b"access-control-max-age", b"%d" % _PREFLIGHT_AGE_S),
    ]
    await exchange.answer(204, headers, b"")
