"""ASGI as a stream of HttpParts: what both ends share, and the client's end.

Path, query and headers travel as the bytes that came in, and no body is ever held as a whole.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from starlette.types import Receive, Scope, Send

from nova.errors import NovaError, invalid
from nova.rpc import nova_pb2 as pb
from nova.rpc.failures import read as read_failure
from nova.rpc.transport import being_cancelled, next_message

SCOPE_REQUEST_ID = "nova.request_id"
"""As :data:`nova.http.exchange.REQUEST_ID`, which this layer may not import; a test compares."""
PART_BYTES = 256 << 10
HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
PROOFS = frozenset({b"authorization", b"x-api-key", b"x-nova-identity"})
"""A client's own proofs end at the door; behind it counts what the door says."""
_FORBIDDEN = (b"\r", b"\n", b"\x00")


def header(scope: Scope, name: bytes) -> str | None:
    """The last header of this name."""
    found: str | None = None
    for key, value in scope["headers"]:
        if key == name:
            found = value.decode("latin-1")
    return found


def add_headers(message: pb.HttpHead, headers: Iterable[tuple[bytes, bytes]], left_out: frozenset[bytes]) -> None:
    """Add all but those ``left_out``. Raises ``validation_failed`` for one that could split a header."""
    for name, value in headers:
        if name.lower() not in left_out:
            check(name, value)
            message.headers.add(name=name, value=value)


def check(*texts: bytes) -> None:
    """Raise ``validation_failed`` for bytes that would end a header line."""
    for text in texts:
        if any(byte in text for byte in _FORBIDDEN):
            raise invalid("headers", "CR, LF and NUL cannot stand in a header or path")


def _request_head(scope: Scope) -> pb.HttpHead:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    check(raw_path, scope["query_string"])
    head = pb.HttpHead(
        method=scope["method"],
        raw_path=raw_path,
        raw_query=scope["query_string"],
        http_version=scope["http_version"],
        scheme=scope["scheme"],
    )
    add_headers(head, scope["headers"], HOP | PROOFS)
    return head


async def forward(open_call: Callable[[], Any], scope: Scope, receive: Receive, send: Send, broken: NovaError) -> None:
    """Send a request over a ProxyHTTP stream, and its answer to ``send`` as it comes.

    Raises AioRpcError, or ``broken`` when the answer ends before it should; a client that leaves ends the RPC.
    """
    head = _request_head(scope)
    call = open_call()
    upload = asyncio.ensure_future(_upload(call, head, receive))
    try:
        await _download(call, send, broken)
        if upload.done():
            upload.result()  # the request's own stream may have refused to go on, and so ended the RPC
    finally:
        upload.cancel()
        call.cancel()
        await asyncio.gather(upload, return_exceptions=True)


async def _upload(call: Any, head: pb.HttpHead, receive: Receive) -> None:
    """Write the request; then watch for the client to leave."""
    try:
        await call.write(pb.HttpPart(head=head).SerializeToString())
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                call.cancel()
                return
            more = message.get("more_body", False)
            for part in parts(message.get("body", b""), end=not more):
                await call.write(part.SerializeToString())
        await call.done_writing()
        while (await receive())["type"] != "http.disconnect":
            pass
        call.cancel()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the RPC has ended; whoever reads its answer hears why
    except Exception:
        call.cancel()
        raise


def parts(body: bytes, *, end: bool) -> Iterable[pb.HttpPart]:
    """A piece of a body, cut into messages of a sensible size."""
    for start in range(0, len(body) - PART_BYTES, PART_BYTES):
        yield pb.HttpPart(body=body[start : start + PART_BYTES])
    rest = body[(len(body) - 1) // PART_BYTES * PART_BYTES :] if body else b""
    if rest or end:
        yield pb.HttpPart(body=rest, end=end)


async def _download(call: Any, send: Send, broken: NovaError) -> None:
    started = False
    while True:
        try:
            data = await next_message(call)
        except asyncio.CancelledError:
            if call.cancelled() and not being_cancelled():
                return  # the client left
            raise
        if data is None:
            raise broken
        part = pb.HttpPart.FromString(data)
        if part.HasField("failure"):
            raise read_failure(part.failure)
        if part.HasField("head"):
            headers = [(pair.name, pair.value) for pair in part.head.headers]
            for name, value in headers:
                check(name, value)
            await send({"type": "http.response.start", "status": part.head.status, "headers": headers})
            started = True
        if not started:
            raise broken
        if part.body or part.end:
            await send({"type": "http.response.body", "body": part.body, "more_body": not part.end})
        if part.end:
            return
