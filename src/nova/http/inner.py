"""A plane behind another door: what it adopts of a request that the door has sent on."""

import re
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from nova.http.exchange import REQUEST_ID

REQUEST_ID_HEADER = b"x-nova-request-id"
"""How a door tells a plane the id that it gave the request."""
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Inner:
    """``app``, with the request id that the door made; one that anybody else sends is a header like any other.

    ``proven`` gets the Authorization header and says whether it is the platform's own (``ServiceToken.proven_by``).
    """

    def __init__(self, app: ASGIApp, proven: Callable[[bytes | None], bool]) -> None:
        self._app = app
        self._proven = proven

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            request_id = headers.get(REQUEST_ID_HEADER)
            if request_id is not None and _ID.fullmatch(request_id) and self._proven(headers.get(b"authorization")):
                scope[REQUEST_ID] = request_id.decode()
        await self._app(scope, receive, send)
