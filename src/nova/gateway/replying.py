"""Answers as header lines and bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Scope, Send

from nova.domain.call import CallResult
from nova.errors import FunctionError, NovaError
from nova.http.body import ClientGone
from nova.http.cycle import Cycle, wire_of
from nova.http.exchange import Exchange, HeaderList
from nova.security import access
from nova.security.guards import Caller


async def reply(scope: Scope, send: Send, status: int, lines: bytes, body: bytes) -> None:
    """One write on our own server; ASGI's two messages on any other."""
    wire = wire_of(scope)
    if wire is not None:
        wire.respond(status, lines, body)
        return
    headers = [*pairs(lines), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


@contextmanager
def with_client(scope: Scope) -> Iterator[Cycle | None]:
    """In this block the running task is cancelled when the client leaves. Raises ClientGone when it has left already."""
    wire = wire_of(scope)
    if wire is None:
        yield None
        return
    if wire.disconnected:
        raise ClientGone
    wire.cancel_with_client(True)
    try:
        yield wire
    finally:
        wire.cancel_with_client(False)


def pairs(lines: bytes) -> HeaderList:
    found = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        found.append((name, value))
    return found


def lines_of(pairs: HeaderList) -> bytes:
    return b"".join(b"%s: %s\r\n" % pair for pair in pairs)


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


async def function_failed(exchange: Exchange, caller: Caller, name: str, result: CallResult, lines: bytes) -> None:
    """502, for answers without an envelope; what the function said is for those who may read its logs."""
    error = result.error or FunctionError("Nova.InvalidOutput", "there is no output")
    shown = {"error": error.as_dict()} if access.allowed(caller.identity, "log:read", name) else {}
    exchange.extra = pairs(lines)
    await exchange.refuse(NovaError("function_error", "the function failed", extra=shown))
