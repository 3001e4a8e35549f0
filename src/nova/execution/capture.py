"""Which payloads of a call its record keeps, and what is masked in them."""

from functools import lru_cache
from typing import Any

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.domain.function import Capture
from nova.telemetry import MASK


def kept(capture: Capture, max_kb: int, call: CallRequest, result: CallResult) -> tuple[bytes | None, bytes | None]:
    """Input and output as the policy has them stored; None for what is not kept.

    The smaller of the function's limit and ``max_kb`` (the platform's) holds. A payload above it is not kept: half a
    document is no document, and cannot be run again.
    """
    if capture.payloads == "none" or (capture.payloads == "errors" and result.error is None):
        return None, None
    limit = min(capture.max_kb, max_kb) * 1024
    return _kept(call.payload, limit, capture.redact), _kept(result.output, limit, capture.redact)


def _kept(data: bytes | None, limit: int, pointers: tuple[str, ...]) -> bytes | None:
    if data is None or len(data) > limit:
        return None
    return redact(data, pointers) if pointers else data


def redact(data: bytes, pointers: tuple[str, ...]) -> bytes | None:
    """``data`` with what the JSON Pointers (RFC 6901) name replaced by ``***``.

    None when the document cannot be rewritten (a number that no machine type holds): then nothing of it is kept.
    """
    try:
        document = payload.decode(data)
        for pointer in pointers:
            document = _mask(document, _tokens(pointer))
        return payload.encode(document)
    except (ValueError, RecursionError):
        return None


def _mask(document: Any, tokens: tuple[str, ...]) -> Any:
    if not tokens:
        return MASK
    parent = document
    for token in tokens[:-1]:
        parent = _child(parent, token)
    last = tokens[-1]
    if isinstance(parent, dict) and last in parent:
        parent[last] = MASK
    elif isinstance(parent, list) and (index := _index(last, len(parent))) is not None:
        parent[index] = MASK
    return document


def _child(value: Any, token: str) -> Any:
    if isinstance(value, dict):
        return value.get(token)
    if isinstance(value, list) and (index := _index(token, len(value))) is not None:
        return value[index]
    return None


def _index(token: str, length: int) -> int | None:
    return int(token) if token.isascii() and token.isdigit() and int(token) < length else None


@lru_cache(maxsize=1024)
def _tokens(pointer: str) -> tuple[str, ...]:
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
