"""User JSON as bytes: checked once where it enters, spliced afterwards, never re-encoded.

``check`` accepts exactly one JSON document of valid UTF-8 without NaN or Infinity, no deeper than 512 levels, and returns
it as a single line (LF and CR can only stand between tokens in valid JSON, so they become spaces). A checked payload can
be placed into a frame, an NDJSON line, an SSE ``data:`` line or a response body as it stands.
"""

from typing import Any

import msgspec

from nova.errors import NovaError

MAX_DEPTH = 512
_LINE = bytes.maketrans(b"\r\n", b"  ")
_OPENERS = b"[{"
_validate = msgspec.json.Decoder(msgspec.Raw).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encoder = msgspec.json.Encoder()
encode = _encoder.encode
"""Encode a value of ours (never a user's payload) as compact JSON bytes."""


def decode(data: bytes | str) -> Any:
    """Decode JSON that a check has already accepted, or that is the platform's own."""
    return msgspec.json.decode(data)


def check(data: bytes, *, limit: int, empty: bytes = b"{}") -> bytes:
    """Validate ``data`` and return it as one line. ``limit`` is in bytes; an empty body stands for ``empty``.

    Raises ``payload_too_large`` above the limit, else ``bad_payload``.
    """
    if len(data) > limit:
        raise too_large(limit)
    if not data:
        return empty
    try:
        _validate(data)
        if not data.isascii():
            data.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise NovaError("bad_payload", f"the payload is not valid JSON: {exc}") from None
    if len(data) > MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise NovaError("bad_payload", f"the payload is nested deeper than {MAX_DEPTH} levels")
    if b"\n" in data or b"\r" in data:
        return data.translate(_LINE)
    return data


def only_member(body: bytes, name: str) -> bytes | None:
    """The value of member ``name`` of a JSON object that has no other, as the bytes it is written in; ``{}`` when the object
    is empty. None for any other body. The value is to be checked (:func:`check`)."""
    try:
        members = _members(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    value = members.pop(name, None)
    if members:
        return None
    return b"{}" if value is None else bytes(value)


def too_large(limit: int) -> NovaError:
    return NovaError("payload_too_large", f"the limit is {limit} bytes", extra={"limit_bytes": limit})


def _depth(data: bytes) -> int:
    """The nesting depth of valid JSON: brackets outside strings."""
    depth = deepest = 0
    in_string = escaped = False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in _OPENERS:
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
