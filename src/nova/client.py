"""The HTTP client of the public API: one method per way of speaking, one operation per row of the route table.

An operation is called by its ``op``; what the route does not know (a path parameter, a query key, a field at the top of the
body) is refused here by name, before anything is sent. Values are the server's to judge.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, RootModel

from nova.api.table import Route, routes
from nova.errors import FieldError
from nova.listen import is_loopback

Json = dict[str, Any]
Value = str | int | float | bool | None
DEFAULT_SERVER = "http://localhost:9000"
CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 930.0
"""For calls of functions: the longest a function may run, and something for the way."""
EVENT_TIMEOUT_S = 45.0
"""Longest silence of an event stream; the server sends a comment every 15 s."""
MAX_DETAIL = 300
_ANSWER_TIME_S = 10.0
"""What an answer may take beyond the time that the function was given."""


class ClientError(Exception):
    """Something went wrong before or instead of an answer."""


class Unreachable(ClientError):
    """Nobody answers at the server's address, or the connection broke."""


class TimedOut(Unreachable):
    """No answer within the client's own patience; what was asked for may still happen."""


class UsageError(ClientError):
    """An operation, parameter or field that does not exist."""


class ApiError(Exception):
    """The server refused. ``code`` is stable; ``errors`` names single fields; ``extra`` has the code's own members."""

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        request_id: str | None = None,
        retry_after_s: int | None = None,
        extra: Json | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.status = status
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.extra = extra or {}


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; ``data`` is decoded JSON."""

    event: str
    data: Any
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """The answer to an invocation. ``error`` is the function's own (``type``, ``message``, ``stack``), else None.

    ``raw`` is the body as the server sent it. ``timing`` are the phases of ``Server-Timing`` in milliseconds.
    """

    request_id: str
    output: Any
    error: Json | None
    duration_ms: float
    cold_start: bool
    version: int
    raw: bytes
    logs: str | None = None
    timing: Mapping[str, float] = field(default_factory=dict)


@cache
def operations() -> Mapping[str, Route]:
    """Every row of the route table by ``op``."""
    return {route.op: route for route in routes()}


class Client:
    """A connection to one server, in one scope. Not for use by several threads at once.

    ``timeout`` in seconds replaces :data:`TIMEOUT_S` and :data:`CALL_TIMEOUT_S` alike.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        api_key: str | None = None,
        tenant: str | None = None,
        namespace: str | None = None,
        *,
        timeout: float | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self._timeout = timeout
        headers = {"X-API-Key": api_key, "X-Nova-Tenant": tenant, "X-Nova-Namespace": namespace}
        try:
            self.http = httpx.Client(
                base_url=self.server,
                headers={name: value for name, value in headers.items() if value},
                timeout=httpx.Timeout(timeout or TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                transport=transport,
                trust_env=not is_loopback(httpx.URL(self.server).host),  # a proxy cannot reach our own loopback
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as exc:
            raise UsageError(f"the server's address or a header is not valid: {exc}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    def call(
        self,
        op: str,
        path: Mapping[str, str | int] | None = None,
        query: Mapping[str, Value] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        """One JSON operation; the answer as decoded JSON, empty for 204.

        Raises ApiError, Unreachable, UsageError.
        """
        route, url = _address(op, path, query, body)
        answer = self._send(
            self.http.build_request(
                route.method,
                url,
                params=_params(query),
                json=dict(body) if body is not None else None,
                headers=dict(headers or {}),
            )
        )
        return _decoded(answer)

    def upload(
        self,
        op: str,
        archive: BinaryIO | bytes,
        path: Mapping[str, str | int] | None = None,
        query: Mapping[str, Value] | None = None,
        meta: Mapping[str, Any] | None = None,
        filename: str = "code.zip",
    ) -> Json:
        """One operation that takes an archive beside its JSON ``meta``."""
        route, url = _address(op, path, query, meta)
        files = {
            "meta": (None, json.dumps(dict(meta or {})).encode(), "application/json"),
            "archive": (filename, archive, "application/octet-stream"),
        }
        return _decoded(self._send(self.http.build_request(route.method, url, params=_params(query), files=files)))

    def fetch(
        self, op: str, path: Mapping[str, str | int] | None = None, query: Mapping[str, Value] | None = None
    ) -> bytes:
        """One operation whose answer is not JSON."""
        route, url = _address(op, path, query, None)
        return self._send(self.http.build_request(route.method, url, params=_params(query))).content

    def pages(
        self,
        op: str,
        path: Mapping[str, str | int] | None = None,
        query: Mapping[str, Value] | None = None,
    ) -> Iterator[Json]:
        """Every page of a list, from the first."""
        query = dict(query or {})
        while True:
            page = self.call(op, path, query)
            yield page
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def events(
        self,
        op: str,
        path: Mapping[str, str | int] | None = None,
        query: Mapping[str, Value] | None = None,
        last_event_id: str | None = None,
    ) -> Iterator[Event]:
        """The events of a stream as they come, until the server ends it. Close the iterator to leave early."""
        route, url = _address(op, path, query, None)
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        request = self.http.build_request(
            route.method,
            url,
            params=_params(query),
            headers=headers,
            timeout=httpx.Timeout(EVENT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )
        yield from self._streamed(request)

    def invoke(
        self,
        function: str,
        payload: bytes = b"{}",
        *,
        qualifier: str | None = None,
        timeout_s: float | None = None,
        sticky_key: str | None = None,
        tail: bool = False,
    ) -> Call:
        """Call a function and wait for its result; ``payload`` is JSON. ``tail`` asks for what the call printed.

        An error of the function itself is in the answer, not an exception.
        """
        patience = self._timeout or CALL_TIMEOUT_S
        headers = _wishes(qualifier, timeout_s, sticky_key)
        if timeout_s is not None:
            patience = timeout_s + _ANSWER_TIME_S  # the server is to say that time ran out
        if tail:
            headers["X-Nova-Log-Type"] = "Tail"
        answer = self._send(
            self.http.build_request(
                "POST",
                f"/functions/{quote(function, safe='')}/invoke",
                content=payload,
                headers=headers,
                timeout=httpx.Timeout(patience, connect=CONNECT_TIMEOUT_S),
            )
        )
        body = _decoded(answer)
        return Call(
            request_id=body["request_id"],
            output=body["output"],
            error=body["error"],
            duration_ms=body["duration_ms"],
            cold_start=body["cold_start"],
            version=body["version"],
            raw=answer.content,
            logs=body.get("logs"),
            timing=server_timing(answer.headers.get("Server-Timing", "")),
        )

    def stream(
        self,
        function: str,
        payload: bytes = b"{}",
        *,
        qualifier: str | None = None,
        timeout_s: float | None = None,
        sticky_key: str | None = None,
        logs: bool = False,
    ) -> Generator[Event, None, None]:
        """Call a function and get what it gives as it comes: ``start``, ``chunk`` (``text``, ``json`` or ``b64``), with ``logs``
        also ``log``, and at last one ``done`` or ``error``. Close the iterator to leave early, which ends the call.

        Raises ApiError for a call that was refused before it gave anything, Unreachable for an answer that breaks off.
        """
        request = self.http.build_request(
            "POST",
            f"/functions/{quote(function, safe='')}/invoke-stream",
            params={"logs": "true"} if logs else None,
            content=payload,
            headers={**_wishes(qualifier, timeout_s, sticky_key), "Accept": "text/event-stream"},
            timeout=httpx.Timeout(EVENT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )
        for event in self._streamed(request):
            yield event
            if event.event in ("done", "error"):
                return
        raise Unreachable(f"{self.server} broke the answer off")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A bare request, for function URLs: the answer whatever its status. Raises Unreachable only."""
        with _reachable(self.server):
            return self.http.request(method, path, **options)

    def _streamed(self, request: httpx.Request) -> Iterator[Event]:
        with _reachable(self.server):
            answer = self.http.send(request, stream=True)
            try:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                yield from _events(_lines(answer.iter_bytes()))
            finally:
                answer.close()

    def _send(self, request: httpx.Request) -> httpx.Response:
        with _reachable(self.server):
            answer = self.http.send(request)
        if answer.is_error:
            raise _refusal(answer)
        return answer


def _wishes(qualifier: str | None, timeout_s: float | None, sticky_key: str | None) -> dict[str, str]:
    """The headers of a call."""
    headers = {"Content-Type": "application/json"}
    if qualifier is not None:
        headers["X-Nova-Qualifier"] = qualifier
    if timeout_s is not None:
        headers["X-Nova-Timeout-S"] = f"{timeout_s:.3f}".rstrip("0").rstrip(".")
    if sticky_key is not None:
        headers["X-Nova-Sticky-Key"] = sticky_key
    return headers


def server_timing(header: str) -> dict[str, float]:
    """``queue;dur=0.1, handler;dur=2`` → milliseconds by phase."""
    found: dict[str, float] = {}
    for part in header.split(","):
        name, *options = (piece.strip() for piece in part.split(";"))
        for option in options:
            key, _, value = option.partition("=")
            if key == "dur":
                found[name] = float(value)
    return found


def _address(
    op: str,
    path: Mapping[str, str | int] | None,
    query: Mapping[str, Value] | None,
    body: Mapping[str, Any] | None,
) -> tuple[Route, str]:
    """The route of an operation and its path with the parameters put in."""
    route = operations().get(op)
    if route is None:
        raise UsageError(f"there is no operation {op!r}")
    given = dict(path or {})
    if set(given) != set(route.params):
        expected = ", ".join(route.params) or "none"
        raise UsageError(f"{op} takes the path parameters: {expected}; given: {', '.join(given) or 'none'}")
    _check_names(op, "query parameter", query, route.query)
    _check_names(op, "field", body, route.body)
    url = route.path
    for name, value in given.items():
        if not str(value):
            raise UsageError(f"{name} must not be empty")
        url = url.replace("{" + name + "}", _segment(str(value)))
    return route, url


def _segment(value: str) -> str:
    """One path segment. A dot segment is escaped, or it would be taken as a step in the path."""
    return {".": "%2E", "..": "%2E%2E"}.get(value) or quote(value, safe="")


def _check_names(op: str, what: str, given: Mapping[str, Any] | None, model: type[BaseModel] | None) -> None:
    if not given or (model is not None and issubclass(model, RootModel)):  # a map: its names are the server's to know
        return
    known = {field.alias or name for name, field in model.model_fields.items()} if model is not None else set()
    for name in given:
        if name not in known:
            raise UsageError(
                f"{op} has no {what} {name!r}" + (f"; it has: {', '.join(sorted(known))}" if known else "")
            )


def _params(query: Mapping[str, Value] | None) -> dict[str, str]:
    """Query values as text; None is left out."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in (query or {}).items()
        if value is not None
    }


@contextmanager
def _reachable(server: str) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as exc:
        raise Unreachable(f"no server answers at {server}: {exc}") from None
    except httpx.ConnectTimeout:
        raise Unreachable(f"no server answers at {server} within {CONNECT_TIMEOUT_S:g} s") from None
    except httpx.TimeoutException:
        raise TimedOut(f"{server} did not answer in time") from None
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        raise Unreachable(f"the connection to {server} failed: {exc or type(exc).__name__}") from None


def _decoded(answer: httpx.Response) -> Json:
    if not answer.content:
        return {}
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Unreachable(f"{answer.url} answered something that is not Nova's: is the server's address right?")
    return body


def _refusal(answer: httpx.Response) -> ApiError:
    request_id = answer.headers.get("X-Request-ID")
    retry_after = answer.headers.get("Retry-After", "")
    retry_after_s = int(retry_after) if retry_after.isdigit() else None
    try:
        body = answer.json()
        code, detail = body.pop("code"), body.pop("detail")
        errors = tuple(FieldError(e["field"], e["message"]) for e in body.pop("errors", ()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ApiError(
            f"http_{answer.status_code}",
            answer.status_code,
            answer.text.strip()[:MAX_DETAIL] or answer.reason_phrase,
            request_id=request_id,
            retry_after_s=retry_after_s,
        )
    extra = {name: value for name, value in body.items() if name not in ("type", "title", "status", "request_id")}
    return ApiError(
        code,
        answer.status_code,
        detail,
        errors=errors,
        request_id=request_id,
        retry_after_s=retry_after_s,
        extra=extra,
    )


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines end at LF only: JSON may hold characters that ``str.splitlines`` would break at."""
    buffer = b""
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()


def _events(lines: Iterator[str]) -> Iterator[Event]:
    name, event_id, data = "message", None, list[str]()
    for line in lines:
        if not line:
            if data:
                yield Event(name, json.loads("\n".join(data)), event_id)
            name, data = "message", []
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "id":
            event_id = value
        elif key == "data":
            data.append(value)
