"""What every call over HTTP has in common: headers in, headers out, the body of the answer."""

import re
from collections.abc import Mapping

from nova.domain.asyncs import MAX_PAYLOAD
from nova.domain.call import Accepted, CallRequest, CallResult
from nova.domain.names import is_qualifier
from nova.errors import FieldError, FunctionError, NovaError
from nova.http.exchange import client_request_id
from nova.payload import check, encode, only_member

Headers = Mapping[bytes, bytes]
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TIMEOUT = re.compile(rb"[0-9]{1,6}(\.[0-9]{1,6})?")
_MAX_TIMEOUT_S = 900
_MAX_HEADER = 512
_LOG_TAIL = 4096
_BOOL = (b"false", b"true")
_COLD = b"x-nova-executed-version: %d\r\nx-nova-cold-start: true\r\nx-nova-duration-ms: %.3f\r\nserver-timing: %s\r\n"
_WARM = (
    b"x-nova-executed-version: %d\r\nx-nova-cold-start: false\r\nx-nova-duration-ms: %.3f\r\n"
    b"server-timing: queue;dur=%.3f, instance;dur=0.000, runtime;dur=0.000, import;dur=0.000, init;dur=0.000,"
    b" handler;dur=%.3f\r\n"
)
WISHES = frozenset(
    {
        b"x-nova-qualifier",
        b"x-nova-timeout-s",
        b"x-nova-sticky-key",
        b"traceparent",
        b"x-request-id",
        b"idempotency-key",
    }
)
"""The headers that :func:`apply_headers` looks at first; without any of them, and a qualifier, it changes nothing."""
_ASIDE = frozenset({b"origin", b"content-encoding"})
"""Headers of requests that need more than a plain answer."""


def apply_headers(call: CallRequest, headers: Headers) -> None:
    """Take the caller's wishes into the call. Raises ``validation_failed`` or ``unsupported`` for what cannot be met."""
    if call.qualifier is None and (value := headers.get(b"x-nova-qualifier")) is not None:
        call.qualifier = value.decode("latin-1")
    if call.qualifier is not None and not is_qualifier(call.qualifier):
        raise _bad("qualifier", "a version number, an alias, live or $LATEST")
    if (value := headers.get(b"x-nova-timeout-s")) is not None:
        call.timeout_ms = _timeout_ms(value)
    if (value := headers.get(b"idempotency-key")) is not None and call.trigger == "http":
        call.idempotency_key = value.decode("latin-1")
    if (value := headers.get(b"x-nova-sticky-key")) is not None:
        call.sticky_key = value[:_MAX_HEADER].decode("latin-1")
    if (value := headers.get(b"traceparent")) is not None and _TRACEPARENT.fullmatch(value):
        call.traceparent = value.decode("ascii")
        if (state := headers.get(b"tracestate")) is not None and len(state) <= _MAX_HEADER:
            call.tracestate = state.decode("latin-1")
    if b"x-request-id" in headers and (label := client_request_id(headers)) is not None:
        call.client_request_id = label.decode("ascii")


def is_plain(headers: Headers) -> bool:
    """Can the body be taken as JSON, and be answered without headers of its own for browsers?"""
    kind = headers.get(b"content-type", b"application/json")
    return kind == b"application/json" and _ASIDE.isdisjoint(headers)


def only_payload(body: bytes) -> bytes | None:
    """The payload in the body of an ``invoke-async`` that says nothing else, checked; None for any other body.

    Those are for the operation of the route table, which also tells what is wrong with them.
    """
    if len(body) > MAX_PAYLOAD:
        return None
    value = only_member(body, "payload")
    try:
        return None if value is None else check(value, limit=MAX_PAYLOAD)
    except NovaError:
        return None


def wants_event(headers: Headers) -> bool:
    """Is the call one that nobody waits for? Raises ``validation_failed`` for a type that does not exist."""
    kind = headers.get(b"x-nova-invocation-type")
    if kind is None or kind == b"RequestResponse":
        return False
    if kind == b"Event":
        return True
    raise _bad("X-Nova-Invocation-Type", "RequestResponse or Event")


def accepted_response(accepted: Accepted, function: str) -> tuple[int, bytes, bytes]:
    """Status, header lines and body of the answer to a call that was put into the queue."""
    lines = b"content-type: application/json\r\nlocation: /async-invocations/%s\r\n" % accepted.invocation_id.encode()
    if accepted.replayed:
        lines += b"x-idempotency-status: replay\r\n"
    body = encode({"invocation_id": accepted.invocation_id, "status": accepted.status, "function": function})
    return 200 if accepted.replayed else 202, lines, body


def _timeout_ms(value: bytes) -> int:
    seconds = float(value) if _TIMEOUT.fullmatch(value) else 0.0
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise _bad("X-Nova-Timeout-S", f"a number of seconds above 0 and up to {_MAX_TIMEOUT_S}")
    return max(1, round(seconds * 1000))


def _bad(field: str, message: str) -> NovaError:
    return NovaError("validation_failed", f"{field}: {message}", errors=[FieldError(field, message)])


def id_headers(call: CallRequest) -> bytes:
    """Header lines that name the call, and what its caller calls it."""
    lines = b"x-request-id: %s\r\n" % call.request_id.encode()
    if call.client_request_id is not None:
        lines += b"x-client-request-id: %s\r\n" % call.client_request_id.encode()
    return lines


def start_headers(version: int, *, cold_start: bool) -> bytes:
    """Header lines about a call that has begun: what is known before it ends."""
    return b"x-nova-executed-version: %d\r\nx-nova-cold-start: %s\r\n" % (version, _BOOL[cold_start])


def answer_headers(result: CallResult) -> bytes:
    """Header lines about a call that ran: which version, how it started, where the time went."""
    phases = result.phases
    lines = _WARM % (result.version, result.duration_us / 1000, phases.queue_us / 1000, phases.handler_us / 1000)
    if result.cold_start:
        timing = ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in phases.parts())
        lines = _COLD % (result.version, result.duration_us / 1000, timing.encode())
    if result.error is not None:
        lines += b"x-nova-function-error: %s\r\n" % _header_text(result.error.type)
    return lines


def _header_text(text: str) -> bytes:
    """Text that the function chose, as the visible ASCII that a header may hold."""
    return bytes(byte if 0x20 < byte < 0x7F else 0x3F for byte in text[:_MAX_HEADER].encode("ascii", "replace"))


def invoke_response(result: CallResult, *, tail: bool) -> bytes:
    """The body of an invoke answer; the function's output is put in as the bytes that came."""
    error = b"null" if result.error is None else error_object(result.error)
    output = result.output if result.error is None and result.output is not None else b"null"
    body = b'{"request_id":"%s","output":%s,"error":%s,"duration_ms":%.3f,"cold_start":%s,"version":%d' % (
        result.request_id.encode(),
        output,
        error,
        result.duration_us / 1000,
        _BOOL[result.cold_start],
        result.version,
    )
    if result.deduplicated:
        body += b',"deduplicated":true'
    if tail:
        body += b',"logs":' + encode(_tail(result.stdout + result.stderr))
    return body + b"}"


def error_object(error: FunctionError) -> bytes:
    return encode(error.as_dict())


def _tail(text: str) -> str:
    return text.encode("utf-8", "replace")[-_LOG_TAIL:].decode("utf-8", "ignore")
