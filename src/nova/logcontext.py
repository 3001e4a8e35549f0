"""Which call a line of the log is about, without every line having to say so.

Who runs a call in a coroutine puts it into :data:`CALL`; whatever is logged below, also by other modules, carries its
identifiers. Nothing is put together until something is logged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import structlog

from nova.tracing import trace_id


class _Scope(Protocol):
    @property
    def tenant(self) -> str: ...
    @property
    def namespace(self) -> str: ...


class LoggedCall(Protocol):
    """The part of a call request that lines name."""

    @property
    def request_id(self) -> str: ...
    @property
    def scope(self) -> _Scope: ...
    @property
    def function(self) -> str: ...
    @property
    def traceparent(self) -> str | None: ...


CALL: ContextVar[LoggedCall | None] = ContextVar("nova.call", default=None)


@contextmanager
def about(call: LoggedCall) -> Iterator[None]:
    """Everything that is logged inside is about this call."""
    token = CALL.set(call)
    try:
        yield
    finally:
        CALL.reset(token)


def fields(call: LoggedCall) -> dict[str, str]:
    """What a line says of a call: for places that run outside a coroutine of the call."""
    found = {
        "request_id": call.request_id,
        "tenant": call.scope.tenant,
        "namespace": call.scope.namespace,
        "function": call.function,
    }
    if (trace := trace_id(call.traceparent)) is not None:
        found["trace_id"] = trace
    return found


def add_call(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor for structlog; what the line says itself wins."""
    call = CALL.get()
    return event if call is None else {**fields(call), **event}
