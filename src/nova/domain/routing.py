"""What a call carries that may decide which version it runs: headers, cookies, the query, who calls, the payload.

A function URL's event holds its request, so what it carried is read from there; a call by ``invoke`` brings its headers
beside its payload. Calls that were no request (queued ones, schedules, functions that call functions) have neither.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from nova import payload
from nova.domain.call import CallRequest
from nova.domain.documents import ABSENT, find
from nova.domain.identity import ANONYMOUS

Source = Literal["header", "cookie", "query", "ip", "identity", "payload"]


def carried(call: CallRequest, source: Source, name: str) -> str | None:
    """The value that a call carries; None when it has none. ``name`` is a JSON Pointer for the payload."""
    if source == "ip":
        return call.source_address
    if source == "identity":
        return None if call.identity is ANONYMOUS else call.identity.subject
    if source == "payload":
        return _in_payload(call, name)
    if call.trigger == "url":
        return _in_event(call, source, name)
    return _in_headers(call.headers or {}, source, name)


def _in_payload(call: CallRequest, pointer: str) -> str | None:
    value = find(_decoded(call), pointer)
    if value is None or value is ABSENT:
        return None
    return value if isinstance(value, str) else payload.encode(value).decode()


def _in_event(call: CallRequest, source: Source, name: str) -> str | None:
    event = _decoded(call)
    if source == "cookie":
        return _cookie(event.get("cookies") or (), name)
    members: Mapping[str, str] = event.get("headers" if source == "header" else "queryStringParameters") or {}
    return members.get(name.lower() if source == "header" else name)


def _in_headers(headers: Mapping[bytes, bytes], source: Source, name: str) -> str | None:
    if source == "query":
        return None
    if source == "cookie":
        return _cookie(headers.get(b"cookie", b"").decode("latin-1").split(";"), name)
    value = headers.get(name.lower().encode("latin-1", "replace"))
    return None if value is None else value.decode("latin-1")


def _cookie(cookies: Iterable[str], name: str) -> str | None:
    for cookie in cookies:
        key, equals, value = cookie.partition("=")
        if equals and key.strip() == name:
            return value.strip()
    return None


def _decoded(call: CallRequest) -> Any:
    """The payload; ABSENT for a document that no machine type holds."""
    try:
        return payload.decode(call.payload)
    except (ValueError, RecursionError):
        return ABSENT
