"""One HTTP request and its answer: identifiers, the headers every answer carries, problems."""

from collections.abc import Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from nova.api import problem
from nova.errors import NovaError
from nova.ids import new_id

HeaderList = list[tuple[bytes, bytes]]
REQUEST_ID = "nova.request_id"
"""Key of the ASGI scope under which the first layer that sees a request puts its id."""
_MAX_CLIENT_ID = 128


def request_id_of(scope: Scope) -> str:
    """The request's id, made here unless an outer layer did. A caller's own is never adopted."""
    request_id: str | None = scope.get(REQUEST_ID)
    if request_id is None:
        request_id = scope[REQUEST_ID] = new_id()
    return request_id


def client_request_id(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The caller's own label for the request, cut to 128 visible characters."""
    value = headers.get(b"x-request-id")
    if value is None:
        return None
    return bytes(byte for byte in value[:_MAX_CLIENT_ID] if 0x20 < byte < 0x7F) or None


class Exchange:
    """``extra`` are headers for the answer, whatever it will be."""

    __slots__ = ("_send", "extra", "headers", "peer", "receive", "request_id", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id_of(scope)
        client = scope.get("client")
        self.peer: str | None = client[0] if client else None
        self.started = False
        self.extra: HeaderList = [(b"x-request-id", self.request_id.encode())]
        if (label := client_request_id(self.headers)) is not None:
            self.extra.append((b"x-client-request-id", label))

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method

    @property
    def raw_path(self) -> bytes:
        raw: bytes = self.scope.get("raw_path") or self.scope["path"].encode()
        return raw

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def send(self, message: Any) -> None:
        """As ASGI's, and remembers that the answer has begun."""
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", []), *self.extra]
        await self._send(message)

    async def answer(self, status: int, headers: HeaderList, body: bytes) -> None:
        """The whole answer. A body of a HEAD request is announced and not sent."""
        if status not in (204, 304):
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def refuse(self, error: NovaError) -> None:
        """Answer with a problem document."""
        headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers(error).items()]
        body = problem.document(error, self.request_id)
        await self.answer(error.status, [*headers, (b"content-type", problem.MEDIA_TYPE.encode())], body)
