"""Request bodies: read within a limit, decoded strictly, never half.

The JSON of the management API is stricter than the standard library's: duplicate keys, NaN and Infinity (also as
``1e999``), unpaired surrogates, NUL characters and more than 64 levels are refused, so that nothing that cannot be stored or
shown gets past this point. Payloads of calls have their own check (:mod:`nova.payload`).
"""

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from nova.api.problem import from_validation
from nova.errors import NovaError
from nova.payload import too_large

M = TypeVar("M", bound=BaseModel)
MAX_DEPTH = 64
_JSON_TYPES = ("application/json", "text/json")


class ClientGone(Exception):
    """The client closed the connection before its request was complete: there is nobody to answer."""


async def read(receive: Receive, declared: bytes | None, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes; refused while reading, whatever the length header said.

    ``declared`` is the Content-Length header. Raises ``payload_too_large``, or :class:`ClientGone`.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        return body
    pieces = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces += message.get("body", b"")
        if len(pieces) > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return bytes(pieces)
        message = await receive()


def limited(receive: Receive, limit: int) -> Receive:
    """The same stream, which raises ``payload_too_large`` as soon as more than ``limit`` bytes came through it."""
    seen = 0

    async def bounded() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise too_large(limit)
        return message

    return bounded


def require_json(content_type: str | None) -> None:
    """Refuse a body that says it is something other than JSON. No Content-Type at all counts as JSON."""
    if not content_type:
        return
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in _JSON_TYPES and not (kind.startswith("application/") and kind.endswith("+json")):
        raise NovaError("unsupported_media_type", f"send application/json, not {kind[:64]!r}")


def decode(raw: bytes) -> Any:
    """Strict JSON → data. Raises ``invalid_json``."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise NovaError("invalid_json", "the body is not UTF-8") from None
    except ValueError as exc:
        raise NovaError("invalid_json", f"the body is not valid JSON: {exc}") from None
    _walk(value, suspicious=b"\\u" in raw or b"\x00" in raw)
    return value


def parse(model: type[M], raw: bytes) -> M:
    """Validate JSON bytes that :func:`decode` accepted, without coercion: ``"128"`` is not a number."""
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as exc:
        raise from_validation(exc) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:64]!r} is there twice")
            seen.add(name)
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _too_deep() -> NovaError:
    return NovaError("invalid_json", f"the body is nested deeper than {MAX_DEPTH} levels")


def _walk(value: Any, *, suspicious: bool) -> None:
    """Refuse what the decoder let through: depth, infinite numbers, and text that cannot be stored."""
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            if suspicious:
                _check_text(item)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise NovaError("invalid_json", "a number is too large")
        elif isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                raise _too_deep()
            children = item.values() if isinstance(item, dict) else item
            pending.extend((child, depth + 1) for child in children)
            if isinstance(item, dict) and suspicious:
                for name in item:
                    _check_text(name)


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise NovaError("invalid_json", "text has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NovaError("invalid_json", "text has half of a surrogate pair") from None
