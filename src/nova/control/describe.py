"""Handlers of the API's own description."""

from collections.abc import Iterable
from importlib import resources

from starlette.responses import Response

from nova import __version__
from nova.api import openapi
from nova.api.table import Empty, Route
from nova.http.handler import Req, handles
from nova.payload import encode

_PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DescriptionHandlers:
    """OpenAPI and a page that shows it; both are made once."""

    def __init__(self, table: Iterable[Route]) -> None:
        self._document = encode(openapi.document(table, __version__))
        self._page = resources.files("nova.api").joinpath("docs.html").read_bytes()

    @handles("openapi.get")
    async def openapi(self, req: Req[Empty, Empty]) -> Response:
        return Response(self._document, media_type="application/json")

    @handles("docs.get")
    async def docs(self, req: Req[Empty, Empty]) -> Response:
        return Response(self._page, media_type="text/html", headers={"content-security-policy": _PAGE_POLICY})
