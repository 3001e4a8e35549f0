"""The spans of a call in the execution plane: ``nova.invoke``, and below it ``nova.acquire``, ``nova.boot`` and ``nova.exec``.

They stand around the executor and not in it, so that a platform that does not trace has nothing of this on its way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from nova.domain.call import CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.domain.ports import Invoker, Streamer
from nova.domain.stream import Sink
from nova.errors import NovaError
from nova.execution.executor import Recorder
from nova.tracing import Attribute, Span, Tracer

_US = 1000
"""nanoseconds"""


class TracedInvoker:
    """Implements :class:`~nova.domain.ports.Invoker` and :class:`~nova.domain.ports.Streamer`: passes calls on and traces
    them.

    The function gets the context of ``nova.exec``; spans that it makes itself belong below that one. Where the time went comes
    from the call's record, so :meth:`recorder` has to stand in the executor's. It has no ``begin``: traced calls take the way
    with a task. ``backend_of`` tells which backend has the instances of a version
    (:meth:`nova.execution.metrics.Metrics.backend_of`).
    """

    def __init__(self, tracer: Tracer, backend_of: Callable[[str, str, str, int], str]) -> None:
        self._tracer = tracer
        self._backend_of = backend_of
        self._invoker: Invoker | None = None
        self._recorded: dict[int, tuple[FunctionSnapshot, CallResult]] = {}
        """of calls that are about to return, by the identity of the request"""
        self._traced: set[int] = set()

    def around(self, invoker: Invoker) -> "TracedInvoker":
        """Call this one. Returns itself."""
        self._invoker = invoker
        return self

    def recorder(self, record: Recorder) -> Recorder:
        """What the executor is to call for each finished call instead of ``record``."""

        def recording(call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
            record(call, snapshot, result)
            if id(call) in self._traced:
                self._recorded[id(call)] = (snapshot, result)

        return recording

    async def invoke(self, call: CallRequest) -> CallResult:
        """See :class:`~nova.domain.ports.Invoker`."""
        assert self._invoker is not None
        return await self._traced_call(call, self._invoker.invoke)

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """See :class:`~nova.domain.ports.Streamer`. The span ends with the stream."""
        streamer: object = self._invoker
        assert isinstance(streamer, Streamer)
        return await self._traced_call(call, lambda call: streamer.stream(call, sink))

    async def _traced_call(self, call: CallRequest, run: Callable[[CallRequest], Awaitable[CallResult]]) -> CallResult:
        span = self._tracer.begin("nova.invoke", call.traceparent, call.tracestate)
        began_ns = time.time_ns()
        given = call.traceparent
        call.traceparent = inner = span.reserve()
        if not span.sampled:
            try:
                return await run(call)
            finally:
                span.end()
                call.traceparent = given or inner
        self._traced.add(id(call))
        error: str | None = None
        try:
            result = await run(call)
            error = None if result.error is None else result.error.type
            return result
        except NovaError as refusal:
            error = refusal.code
            raise
        except asyncio.CancelledError:
            error = "cancelled"
            raise
        except Exception:
            error = "internal"
            raise
        finally:
            self._traced.discard(id(call))
            call.traceparent = given or inner  # the record names the trace also where it begins here
            self._end(call, span, inner, began_ns, error, self._recorded.pop(id(call), None))

    def _end(
        self,
        call: CallRequest,
        span: Span,
        inner: str,
        began_ns: int,
        error: str | None,
        recorded: tuple[FunctionSnapshot, CallResult] | None,
    ) -> None:
        common: dict[str, Attribute] = {
            "nova.tenant": call.scope.tenant,
            "nova.namespace": call.scope.namespace,
            "faas.name": call.function,
            "faas.invocation_id": call.request_id,
        }
        attributes = {
            **common,
            "faas.trigger": call.trigger,
            "nova.attempt": call.attempt,
            "nova.outcome": "success" if error is None else error,
        }
        if recorded is not None:
            snapshot, result = recorded
            attributes |= {
                "faas.version": str(result.version),
                "faas.coldstart": result.cold_start,
                "nova.runtime": snapshot.runtime,
                "nova.backend": self._backend_of(*_labels(snapshot)) or snapshot.backend,
                "nova.instance.id": result.instance_id,
                "nova.start_source": result.source,
                "nova.queue_ms": result.phases.queue_us / 1000,
            }
            self._phases(span, inner, began_ns, result, common)
        span.end(attributes, error=error)

    def _phases(self, span: Span, inner: str, began_ns: int, result: CallResult, common: dict[str, Attribute]) -> None:
        """A call waits, boots if it has to, and runs: one after the other."""
        phases = result.phases
        acquired = began_ns + phases.queue_us * _US
        booted = acquired + (phases.instance_us + phases.init_us) * _US
        ended = booted + phases.handler_us * _US
        error = None if result.error is None else result.error.type
        ran = phases.handler_us > 0
        self._tracer.record("nova.acquire", span, began_ns, acquired, common)
        if booted > acquired:
            boot = {
                **common,
                "nova.start_source": result.source,
                "nova.instance_ms": phases.instance_us / 1000,
                "nova.init_ms": phases.init_us / 1000,
            }
            self._tracer.record("nova.boot", span, acquired, booted, boot, error=None if ran else error)
        if ran:
            run = {**common, "nova.instance.id": result.instance_id, "faas.version": str(result.version)}
            self._tracer.record("nova.exec", span, booted, ended, run, error=error, reserved=inner)


def _labels(snapshot: FunctionSnapshot) -> tuple[str, str, str, int]:
    return snapshot.scope.tenant, snapshot.scope.namespace, snapshot.name, snapshot.version
