"""Function URLs: an HTTP request as the event that a function gets, and what it returns as an HTTP answer.

The event is AWS Lambda's function-URL payload 2.0, so adapters for web frameworks run unchanged, with ``method``, ``path`` and
``query_params`` beside it for functions without an adapter.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from nova.errors import NovaError

_HOP_BY_HOP = frozenset(
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
        b"http2-settings",
        b"expect",
    }
)
_OURS = frozenset({b"cookie", b"x-api-key", b"forwarded", b"via", b"x-real-ip"})
"""Request headers that reach the function in another form or not at all."""
_FRAMING = frozenset({"content-length", "date", "x-request-id"})
"""Answer headers that the platform writes."""
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TEXT_TYPES = ("application/json", "application/xml", "application/x-www-form-urlencoded", "application/javascript")
BODYLESS = (204, 205, 304)
"""Statuses whose answers have no body."""


@dataclass(frozen=True, slots=True)
class UrlRequest:
    """What the event is made of. ``raw_path`` is what follows the function's name, as sent; ``prefix`` what comes before."""

    request_id: str
    tenant: str
    function: str
    principal: str
    method: str
    raw_path: bytes
    prefix: str
    query: bytes
    http_version: str
    headers: Iterable[tuple[bytes, bytes]]
    body: bytes
    address: str | None
    proto: str
    received: datetime


@dataclass(frozen=True, slots=True)
class UrlAnswer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def event(request: UrlRequest) -> bytes:
    """The event as JSON bytes on one line."""
    headers, cookies = _headers(request)
    raw_path = request.raw_path.decode("ascii", "replace") or "/"
    query = request.query.decode("ascii", "replace")
    pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
    many: dict[str, list[str]] = {}
    for name, value in pairs:
        many.setdefault(name, []).append(value)
    host = headers.get("host", "")
    document: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": raw_path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": request.tenant,
            "apiId": request.function,
            "domainName": host,
            "domainPrefix": request.function,
            "stage": "$default",
            "routeKey": "$default",
            "requestId": request.request_id,
            "time": request.received.astimezone(UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(request.received.timestamp() * 1000),
            "authorizer": {"nova": {"principal": request.principal}},
            "http": {
                "method": request.method,
                "path": raw_path,
                "protocol": f"HTTP/{request.http_version}",
                "sourceIp": request.address or "",
                "userAgent": headers.get("user-agent", ""),
            },
        },
        "isBase64Encoded": False,
        "method": request.method,
        "path": unquote(raw_path, errors="replace"),
        "query_params": many,
    }
    if cookies:
        document["cookies"] = cookies
    if many:
        document["queryStringParameters"] = {name: ",".join(values) for name, values in many.items()}
    if request.body:
        document["body"], document["isBase64Encoded"] = _body_in(request.body, headers)
    return msgspec.json.encode(document)


def _headers(request: UrlRequest) -> tuple[dict[str, str], list[str]]:
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for raw_name, raw_value in request.headers:
        if raw_name == b"cookie":
            cookies += [part for piece in raw_value.decode("latin-1").split(";") if (part := piece.strip())]
        if raw_name in _HOP_BY_HOP or raw_name in _OURS or raw_name.startswith((b"x-nova-", b"x-forwarded-")):
            continue
        if raw_name == b"authorization" and _is_platform_credential(raw_value):
            continue
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    headers["x-forwarded-for"] = request.address or ""
    headers["x-forwarded-proto"] = request.proto
    headers["x-forwarded-prefix"] = request.prefix
    return headers, cookies


def _is_platform_credential(value: bytes) -> bool:
    scheme, _, rest = value.partition(b" ")
    return scheme.lower() == b"apikey" or (scheme.lower() == b"bearer" and rest.strip().startswith(b"nk_"))


def _body_in(body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
    """Text stays text; everything else, and what is not what it says, is base64."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    textual = kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml"))
    if textual and "content-encoding" not in headers:
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass  # not the text it claims to be: handed over byte for byte
    return base64.b64encode(body).decode(), True


def answer(output: bytes) -> UrlAnswer:
    """What a function returned as an HTTP answer. Raises ``invalid_response`` for one that HTTP cannot carry.

    An object with ``statusCode`` is an answer in parts; anything else is itself the body, as JSON with status 200.
    """
    document = _parts(output)
    if document is None:
        return UrlAnswer(200, [(b"content-type", b"application/json")], output)
    found = _answer(document)
    if found.body and not any(name == b"content-type" for name, _ in found.headers):
        found.headers.append((b"content-type", b"application/json"))
    return UrlAnswer(found.status, found.headers, b"" if found.status in BODYLESS else found.body)


def prelude(piece: bytes) -> UrlAnswer | None:
    """The head of a streamed answer, when its first JSON piece is one: an object with ``statusCode``. ``body`` in it is what
    the answer begins with. Raises ``invalid_response``."""
    document = _parts(piece)
    if document is None:
        return None
    found = _answer(document)
    if not any(name == b"content-type" for name, _ in found.headers):
        found.headers.append((b"content-type", b"application/octet-stream"))
    return found


def _parts(output: bytes) -> dict[str, Any] | None:
    """The object with ``statusCode`` that ``output`` is, or None."""
    if not output.lstrip(b" \t").startswith(b"{") or b'"statusCode"' not in output:
        return None
    document: dict[str, Any] = msgspec.json.decode(output)
    return document if "statusCode" in document else None


def _answer(document: Mapping[str, Any]) -> UrlAnswer:
    status = document["statusCode"]
    if type(status) is not int or not 200 <= status <= 599:
        raise _invalid("statusCode is not an integer between 200 and 599")
    return UrlAnswer(status, list(_headers_out(document)), _body_out(document))


def _headers_out(document: Mapping[str, Any]) -> Iterable[tuple[bytes, bytes]]:
    for member in ("headers", "multiValueHeaders"):
        headers = document.get(member) or {}
        if not isinstance(headers, dict):
            raise _invalid(f"{member} is not an object")
        for name, values in headers.items():
            lower = name.lower()
            if lower in _FRAMING or lower.encode("utf-8", "replace") in _HOP_BY_HOP or lower.startswith("x-nova-"):
                continue
            for value in values if isinstance(values, list) else [values]:
                yield _header(lower, value)
    cookies = document.get("cookies") or []
    if not isinstance(cookies, list):
        raise _invalid("cookies is not a list")
    for cookie in cookies:
        yield _header("set-cookie", cookie)


def _header(name: str, value: Any) -> tuple[bytes, bytes]:
    if not _TOKEN.fullmatch(name):
        raise _invalid("a header has a name that HTTP does not allow")
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise _invalid(f"header {name!r} is not text")
    if _CONTROLS.search(value):
        raise _invalid(f"header {name!r} has a line break or control character")
    try:
        return name.encode("ascii"), value.encode("latin-1")
    except UnicodeEncodeError:
        return name.encode("ascii"), value.encode()


def _body_out(document: Mapping[str, Any]) -> bytes:
    body = document.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise _invalid("body is not text")
    if not document.get("isBase64Encoded", False):
        return body.encode("utf-8", "replace")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("body is not base64") from None


def _invalid(why: str) -> NovaError:
    return NovaError("invalid_response", f"the function's answer cannot be sent: {why}")
