"""Calls, results and reports as messages, and back. What comes in from the wire is checked here."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import get_args

from nova import payload
from nova.domain.asyncs import PRIORITIES
from nova.domain.call import MAX_DEPTH, AsyncOptions, CallRequest, CallResult, Phases, StartSource, Trigger
from nova.domain.identity import Identity, Scope
from nova.domain.names import is_name, is_qualifier
from nova.domain.node import NodeReport, NodeState, WarmPool
from nova.errors import FunctionError, invalid, not_found
from nova.ids import new_id
from nova.rpc import nova_pb2 as pb
from nova.rpc.failures import text
from nova.rpc.headers import PackedHeaders, pack

LOG_TAIL = 4096
"""Characters of each stream that travel with a result; the call's record has all of it."""
MAX_TIMEOUT_MS = 900_000
_MAX_TEXT = 512
_TRIGGERS: dict[str, Trigger] = {name: name for name in get_args(Trigger)}
_SOURCES: dict[str, StartSource] = {name: name for name in get_args(StartSource)}
_STATES: dict[str, NodeState] = {name: name for name in get_args(NodeState)}
_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_LABEL = re.compile(r"[\x21-\x7e]{0,128}").fullmatch


def write_request(message: pb.InvokeRequest, call: CallRequest, remaining_ms: int) -> None:
    """Everything of a call that its assertion does not say. ``remaining_ms``: 0 for no limit but the function's."""
    message.request_id = call.request_id
    message.function = call.function
    message.payload = call.payload
    message.trigger = call.trigger
    if call.qualifier is not None:
        message.qualifier = call.qualifier
    if remaining_ms:
        message.timeout_ms = remaining_ms
    if call.idempotency_key is not None:
        message.idempotency_key = call.idempotency_key
    if call.sticky_key is not None:
        message.sticky_key = call.sticky_key
    if call.attempt != 1:
        message.attempt = call.attempt
    if call.caller is not None:
        message.caller = call.caller
    if call.client_request_id is not None:
        message.client_request_id = call.client_request_id
    if call.chain:
        message.chain.extend(call.chain)
    if call.hops:
        message.hops = call.hops
    if call.headers is not None:
        message.headers = pack(call.headers)


def read_request(
    message: pb.InvokeRequest, identity: Identity, scope: Scope, address: str | None, *, now: float, limit: int
) -> CallRequest:
    """A call as if it had been made here at ``now`` (monotonic). ``limit`` is the payload's, in bytes.

    Raises ``not_found``, ``validation_failed``, ``bad_payload`` or ``payload_too_large``.
    """
    function = message.function
    if not is_name(function):
        raise not_found("function", function[:_MAX_TEXT])
    request_id = message.request_id
    if not request_id:
        request_id = new_id()
    elif _REQUEST_ID(request_id) is None:
        raise invalid("request_id", "a UUID in lower case")
    trigger = _TRIGGERS.get(message.trigger or "grpc")
    if trigger is None:
        raise invalid("trigger", f"one of {', '.join(_TRIGGERS)}")
    call = CallRequest(
        request_id, scope, function, payload.check(message.payload, limit=limit), identity, now, trigger=trigger
    )
    call.source_address = address
    if qualifier := message.qualifier:
        if not is_qualifier(qualifier):
            raise invalid("qualifier", "a version number, an alias, live or $LATEST")
        call.qualifier = qualifier
    if timeout_ms := message.timeout_ms:
        if timeout_ms > MAX_TIMEOUT_MS:
            raise invalid("timeout_ms", f"at most {MAX_TIMEOUT_MS}")
        call.timeout_ms = timeout_ms
    if attempt := message.attempt:
        call.attempt = attempt
    call.idempotency_key = _bounded("idempotency_key", message.idempotency_key)
    call.sticky_key = _bounded("sticky_key", message.sticky_key)
    call.caller = _bounded("caller", message.caller)
    if label := message.client_request_id:
        if _LABEL(label) is None:
            raise invalid("client_request_id", "at most 128 visible ASCII characters")
        call.client_request_id = label
    if message.chain:
        call.chain = _chain(message.chain)
    call.hops = message.hops
    if headers := message.headers:
        call.headers = PackedHeaders(headers)
    return call


def _chain(names: Sequence[str]) -> tuple[str, ...]:
    """One function more than a chain may have is let through, to be refused as what it is."""
    if len(names) > MAX_DEPTH + 1 or not all(map(is_name, names)):
        raise invalid("chain", f"at most {MAX_DEPTH + 1} names of functions")
    return tuple(names)


def read_trace(call: CallRequest, traceparent: str, tracestate: str) -> None:
    """Take the trace context along; one that is not valid is dropped, as W3C asks."""
    if traceparent and _TRACEPARENT(traceparent) is not None:
        call.traceparent = traceparent
        if tracestate and len(tracestate) <= _MAX_TEXT:
            call.tracestate = tracestate


def _bounded(field: str, value: str) -> str | None:
    if not value:
        return None
    if len(value) > _MAX_TEXT:
        raise invalid(field, f"at most {_MAX_TEXT} characters")
    return value


def write_response(message: pb.InvokeResponse, result: CallResult) -> None:
    message.request_id = result.request_id
    message.version = result.version
    if result.error is not None:
        error = result.error
        message.error.type = text(error.type)
        message.error.message = text(error.message)
        message.error.stack.extend(text(line) for line in error.stack)
    elif result.output is not None:
        message.output = result.output
    message.duration_us = result.duration_us
    message.source = result.source
    message.instance_id = result.instance_id
    phases, times = message.phases, result.phases
    phases.queue_us = times.queue_us
    phases.handler_us = times.handler_us
    if result.cold_start:
        message.cold_start = True
        phases.instance_us = times.instance_us
        phases.init_us = times.init_us
        phases.import_us = times.import_us
        phases.runtime_us = times.runtime_us
    if result.stdout:
        message.stdout = text(result.stdout[-LOG_TAIL:])
    if result.stderr:
        message.stderr = text(result.stderr[-LOG_TAIL:])
    if result.deduplicated:
        message.deduplicated = True


def read_response(message: pb.InvokeResponse) -> CallResult:
    error = None
    if message.HasField("error"):
        error = FunctionError(message.error.type, message.error.message, tuple(message.error.stack))
    phases = message.phases
    return CallResult(
        request_id=message.request_id,
        version=message.version,
        output=message.output if message.HasField("output") else None,
        error=error,
        duration_us=message.duration_us,
        cold_start=message.cold_start,
        instance_id=message.instance_id,
        source=_SOURCES.get(message.source, "warm"),
        phases=Phases(
            phases.queue_us,
            phases.instance_us,
            phases.init_us,
            phases.handler_us,
            phases.import_us,
            phases.runtime_us,
        ),
        stdout=message.stdout,
        stderr=message.stderr,
        deduplicated=message.deduplicated,
    )


_OPTIONAL = (
    *("max_attempts", "backoff_base_ms", "backoff_max_ms", "max_age_s", "idempotency_ttl_s", "concurrency_key"),
    *("concurrency_limit", "debounce_key", "debounce_s", "debounce_max_s", "callback_url", "keep_s"),
)


def write_options(message: pb.AsyncOptions, options: AsyncOptions) -> None:
    for name in _OPTIONAL:
        if (value := getattr(options, name)) is not None:
            setattr(message, name, value)
    message.delay_s = options.delay_s
    message.priority = options.priority


def read_options(message: pb.AsyncOptions, idempotency_key: str | None) -> AsyncOptions:
    """Raises ``validation_failed``."""
    values = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    if (priority := message.priority or "normal") not in PRIORITIES:
        raise invalid("options.priority", f"one of {', '.join(PRIORITIES)}")
    if not 0 <= message.delay_s <= 366 * 86_400:
        raise invalid("options.delay_s", "from 0 to a year")
    return AsyncOptions(
        delay_s=message.delay_s,
        idempotency_key=idempotency_key,
        priority=priority,
        **values,
    )


_REPORT = [field.name for field in fields(NodeReport) if field.name not in ("warm", "backends", "labels", "state")]
_POOL = [field.name for field in fields(WarmPool)]


def write_report(report: NodeReport) -> pb.NodeReport:
    message = pb.NodeReport(
        state=report.state, backends=report.backends, labels=report.labels, **{n: getattr(report, n) for n in _REPORT}
    )
    for pool in report.warm:
        message.warm.add(**{name: getattr(pool, name) for name in _POOL})
    return message


def read_report(message: pb.NodeReport) -> NodeReport:
    """A state that this process does not know counts as ``cordoned``: such a node gets nothing."""
    return NodeReport(
        state=_STATES.get(message.state, "cordoned"),
        warm=tuple(WarmPool(**{name: getattr(pool, name) for name in _POOL}) for pool in message.warm),
        backends=tuple(message.backends),
        labels=dict(message.labels),
        **{name: getattr(message, name) for name in _REPORT},
    )
