"""One operation of the route table with its handler: guards, input, audit and answer, the same for all of them."""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import Request

from nova.api.problem import from_validation
from nova.api.table import Kind, Route
from nova.config import LimitSettings
from nova.domain.identity import Scope
from nova.errors import FieldError, NovaError
from nova.http import body as bodies
from nova.http import sse
from nova.http.admit import Admission
from nova.http.exchange import Exchange, HeaderList
from nova.http.handler import Answer, Handler, Req
from nova.http.routing import fill
from nova.security.guards import Caller

M = TypeVar("M", bound=BaseModel)
_MB = 1 << 20
_UNWANTED_BODY = 64 * 1024
_UPLOAD_ENVELOPE = _MB
"""What a multipart body may have beside the archive itself."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What every operation needs."""

    admission: Admission
    limits: LimitSettings


class Operation:
    """``item_path`` is where the thing that a 201 created can be read."""

    def __init__(self, route: Route, handler: Handler, shared: Shared, item_path: str | None) -> None:
        self.route = route
        self._handler = handler
        self._shared = shared
        self._item_path = item_path

    async def __call__(self, exchange: Exchange, params: Mapping[str, str]) -> None:
        """Answer one request. Refusals are raised; the answer of a success has been sent when this returns."""
        caller, scope = await self._shared.admission.admit(self.route, exchange, params)
        request = await self._request(exchange, params, caller, scope)
        if self.route.kind is Kind.SSE:
            await self._stream(request, exchange)
            return
        result = await self._handler(request)
        answer = result if isinstance(result, Answer) else Answer(None)
        if not isinstance(result, Answer) and (result is None or isinstance(result, BaseModel | Mapping)):
            answer.body = result
        status = answer.status or self.route.status
        if status == 201 and "Location" not in answer.headers and (location := self._location(params, answer.body)):
            answer.headers["Location"] = location
        if self.route.audit is not None and not request.dry_run:
            resource = answer.headers.get("Location") or fill(self.route.path, params)
            details = {"fields": sorted(request.raw_body)} if isinstance(request.raw_body, dict) else {}
            trail = self._shared.admission.trail
            await trail.changed(caller, scope, self.route.audit, resource, exchange.request_id, details)
        if not isinstance(result, Answer) and answer.body is None and callable(result):
            await result(exchange.scope, exchange.receive, exchange.send)
        else:
            await _send(exchange, answer, status)

    async def _request(
        self, exchange: Exchange, params: Mapping[str, str], caller: Caller, scope: Scope
    ) -> Req[Any, Any]:
        route = self.route
        if exchange.method == "POST" and b"idempotency-key" in exchange.headers and not route.idempotent:
            raise NovaError("unsupported", "Idempotency-Key is not available on this route")
        query = parse_query(route.query, exchange.scope["query_string"])
        request: Req[Any, Any] = Req(
            identity=caller.identity,
            scope=scope,
            request_id=exchange.request_id,
            params=params,
            body=None,
            query=query,
            http=Request(exchange.scope, exchange.receive),
            if_match=_if_match(exchange.header(b"if-match")),
            dry_run=bool(getattr(query, "dry_run", False)),
        )
        if route.kind is Kind.UPLOAD:
            limit = body_limit(route, self._shared.limits)
            request.http = Request(exchange.scope, bodies.limited(exchange.receive, limit))
        elif exchange.method not in ("GET", "HEAD"):
            await self._read_body(exchange, request)
        return request

    async def _read_body(self, exchange: Exchange, request: Req[Any, Any]) -> None:
        model, limit = self.route.body, body_limit(self.route, self._shared.limits)
        raw = await bodies.read(exchange.receive, exchange.headers.get(b"content-length"), limit)
        if model is None:
            if raw.strip() not in (b"", b"{}"):
                raise NovaError("validation_failed", "this operation takes no body")
            return
        raw = raw or b"{}"
        bodies.require_json(exchange.header(b"content-type"))
        request.raw_body = bodies.decode(raw)
        request.body = bodies.parse(model, raw)

    async def _stream(self, request: Req[Any, Any], exchange: Exchange) -> None:
        produced: Any = self._handler(request)
        events: AsyncIterator[sse.Event | sse.Batch] = await produced if inspect.isawaitable(produced) else produced
        await sse.stream(events, exchange.receive, exchange.send, [])

    def _location(self, params: Mapping[str, str], created: Any) -> str | None:
        """Where a created resource is: the item route of the collection, with its name from the answer."""
        if self._item_path is None or created is None:
            return None
        read: Callable[[str], Any] = (
            created.get if isinstance(created, Mapping) else lambda n: getattr(created, n, None)
        )
        last = self._item_path.rpartition("{")[2].rstrip("}")
        for name in (last, "name", "version", "id"):
            if (value := read(name)) is not None:
                return fill(self._item_path, {**params, last: str(value)})
        return None


def body_limit(route: Route, limits: LimitSettings) -> int:
    """How many bytes the body of a request to this route may have."""
    if route.kind is Kind.UPLOAD:
        return limits.archive_mb * _MB + _UPLOAD_ENVELOPE
    if route.body is None:
        return _UNWANTED_BODY
    takes_code = bool({"code", "files"} & route.body.model_fields.keys())
    return (max(limits.body_mb, limits.code_mb) if takes_code else limits.body_mb) * _MB


def parse_query(model: type[M], raw: bytes) -> M:
    """The query string as the route's model. Unknown and repeated keys are refused unless the field is a list."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=200)
    except ValueError:
        raise NovaError("validation_failed", "the query string is not valid") from None
    values: dict[str, Any] = {}
    for name, text in pairs:
        if "\x00" in text:
            raise NovaError("validation_failed", f"{name}: text has a NUL character")
        field = model.model_fields.get(name)
        if field is not None and getattr(field.annotation, "__origin__", None) in (list, tuple):
            values.setdefault(name, []).append(text)
        elif name in values:
            raise NovaError("validation_failed", f"{name} is there twice", errors=[FieldError(name, "is there twice")])
        else:
            values[name] = text
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        raise from_validation(exc) from None


def _if_match(value: str | None) -> str | None:
    """The entity tag of If-Match without quotes; ``*`` means any, so it demands nothing."""
    if value is None or value.strip() == "*":
        return None
    tag = value.strip()
    if "," in tag:
        raise NovaError("validation_failed", "If-Match: name one entity tag")
    return tag.removeprefix("W/").strip('"')


async def _send(exchange: Exchange, answer: Answer, status: int) -> None:
    headers: HeaderList = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    tag = answer.headers.get("ETag")
    if tag is not None and exchange.method in ("GET", "HEAD") and _matches(exchange.header(b"if-none-match"), tag):
        await exchange.answer(304, headers, b"")
    elif answer.body is None:
        await exchange.answer(204 if status == 200 else status, headers, b"")
    else:
        await exchange.answer(status, [*headers, (b"content-type", b"application/json")], to_json(answer.body))


def _matches(wanted: str | None, tag: str) -> bool:
    if wanted is None:
        return False
    return wanted.strip() == "*" or tag.strip('"') in [
        one.strip().removeprefix("W/").strip('"') for one in wanted.split(",")
    ]
