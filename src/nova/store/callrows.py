"""Call records in PostgreSQL's binary COPY form: encoded once, then written, spilled and replayed as the same bytes.

What is the same for all calls of one version is encoded once per version; a row then costs a few microseconds.
"""

import hashlib
import struct
from datetime import UTC, datetime
from functools import lru_cache

from msgspec import Struct

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.domain.outcome import outcome_of

COLUMNS = (
    "tenant_id, namespace, function_id, function_name, version, runtime,"
    " id, created_at, success, cold_start, duration_ms, queue_ms, boot_ms, init_ms, input_size, output_size,"
    " qualifier, trigger, caller, status, error_kind, error_message, error_stack, start_source, instance_id,"
    " input, output, stdout, stderr, trace_id, client_request_id, runtime_ms, import_ms, outcome"
)
LAYOUT = hashlib.sha256(COLUMNS.encode()).hexdigest()[:12]
"""Names the form of encoded rows; rows of another layout cannot be written by this code."""

HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack("!ii", 0, 0)
TRAILER = struct.pack("!h", -1)
_COUNT = struct.pack("!h", COLUMNS.count(",") + 1)
_NULL = struct.pack("!i", -1)
_length = struct.Struct("!i").pack
_FIXED = struct.Struct("!i16siqi?i?idididid" + "iqiq")
_PARTS = struct.Struct("!idid")
_NO_PARTS = _PARTS.pack(8, 0, 8, 0)
_EPOCH_2000_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


class FinishedCall(Struct):
    """A call as it is kept until it is encoded. ``at_us`` is the wall-clock time of its end in microseconds."""

    at_us: int
    call: CallRequest
    snapshot: FunctionSnapshot
    result: CallResult


def version_prefix(snapshot: FunctionSnapshot) -> bytes:
    """The fields that every call of this version shares."""
    return b"".join(
        (
            _COUNT,
            _text(snapshot.scope.tenant),
            _text(snapshot.scope.namespace),
            _field(_uuid(snapshot.function_id)),
            _text(snapshot.name),
            _field(struct.pack("!i", snapshot.version)),
            _text(snapshot.runtime),
        )
    )


def encode(prefix: bytes, done: FinishedCall, input: bytes | None, output: bytes | None) -> bytes:
    """One row. ``input`` and ``output`` are checked JSON, or None where nothing is kept."""
    call, result = done.call, done.result
    phases, error = result.phases, result.error
    return b"".join(
        (
            prefix,
            _FIXED.pack(
                16,
                _uuid(call.request_id),
                8,
                done.at_us - _EPOCH_2000_US,
                1,
                error is None,
                1,
                result.cold_start,
                8,
                result.duration_us / 1000,
                8,
                phases.queue_us / 1000,
                8,
                phases.instance_us / 1000,
                8,
                phases.init_us / 1000,
                8,
                len(call.payload),
                8,
                len(result.output) if result.output is not None else 0,
            ),
            _NULL if call.qualifier is None else _label(call.qualifier),
            _label(call.trigger),
            _label(call.identity.subject),
            _SUCCESS if error is None else _ERROR,
            _NO_ERROR
            if error is None
            else _text(error.type) + _text(error.message) + _field(payload.encode([_clean(s) for s in error.stack])),
            _label(result.source),
            _label(result.instance_id),
            _field(input) if input is not None else _NULL,
            _field(output) if output is not None else _NULL,
            _text(result.stdout) if result.stdout else _EMPTY,
            _text(result.stderr) if result.stderr else _EMPTY,
            _optional(_trace_id(call.traceparent)),
            _optional(call.client_request_id),
            _NO_PARTS
            if not result.cold_start
            else _PARTS.pack(8, phases.runtime_us / 1000, 8, phases.import_us / 1000),
            _label(outcome_of(error, loaded=result.loaded)),
        )
    )


def _trace_id(traceparent: str | None) -> str | None:
    return traceparent[3:35] if traceparent and len(traceparent) >= 55 else None


def _uuid(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


def _field(data: bytes) -> bytes:
    return _length(len(data)) + data


def _text(text: str) -> bytes:
    """A text field; what PostgreSQL cannot hold (NUL, lone surrogates) is replaced."""
    if not text:
        return _EMPTY
    data = text.encode("utf-8", "replace")
    if b"\x00" in data:
        data = data.replace(b"\x00", "\ufffd".encode())
    return _length(len(data)) + data


@lru_cache(maxsize=4096)
def _label(text: str) -> bytes:
    """A text field of few values."""
    return _text(text)


def _optional(text: str | None) -> bytes:
    return _NULL if text is None else _text(text)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


_EMPTY = _length(0)
_SUCCESS = _field(b"success")
_ERROR = _field(b"error")
_NO_ERROR = _NULL * 3
