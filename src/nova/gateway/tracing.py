"""``gateway.request``: the span of a call at the door, from its arrival to its answer.

It stands around the invoker that the front calls, so that a platform that does not trace has nothing of this on its way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import CallRequest, CallResult
from nova.domain.ports import Invoker, Streamer
from nova.domain.stream import Sink
from nova.errors import NovaError
from nova.tracing import Tracer, Tracing

_OK, _CLIENT_GONE, _FAULT = 200, 499, 500


class TracedGateway:
    """Implements :class:`~nova.domain.ports.Invoker` and Streamer: passes calls on, below a span of their own.

    It has no ``begin``: traced calls take the way with a task.
    """

    def __init__(self, tracer: Tracer, invoker: Invoker, clock: Clock = SYSTEM_CLOCK) -> None:
        self._tracer = tracer
        self._invoker = invoker
        self._now = clock.monotonic

    async def invoke(self, call: CallRequest) -> CallResult:
        """See :class:`~nova.domain.ports.Invoker`."""
        return await self._traced(call, lambda: self._invoker.invoke(call))

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """See :class:`~nova.domain.ports.Streamer`."""
        streamer = streamer_of(self._invoker)
        return await self._traced(call, lambda: streamer.stream(call, sink))

    async def _traced(self, call: CallRequest, work: Callable[[], Awaitable[CallResult]]) -> CallResult:
        began_ns = time.time_ns() - max(0, int((self._now() - call.received) * 1e9))
        span = self._tracer.begin("gateway.request", call.traceparent, call.tracestate, began_ns=began_ns)
        call.traceparent = span.traceparent
        status, error = _OK, None
        try:
            return await work()
        except NovaError as refusal:
            status, error = refusal.status, refusal.code
            raise
        except asyncio.CancelledError:
            status, error = _CLIENT_GONE, "cancelled"
            raise
        except Exception:
            status, error = _FAULT, "internal"
            raise
        finally:
            span.end(
                {
                    "nova.tenant": call.scope.tenant,
                    "nova.namespace": call.scope.namespace,
                    "faas.name": call.function,
                    "faas.invocation_id": call.request_id,
                    "faas.trigger": call.trigger,
                    "http.response.status_code": status,
                },
                error=error,
            )


def at_the_door(invoker: Invoker, tracing: Tracing | None) -> Invoker:
    """What the front is to call: the invoker itself while nothing is traced."""
    return invoker if tracing is None else TracedGateway(tracing.tracer("zenith"), invoker)


def streamer_of(invoker: Invoker) -> Streamer:
    """The invoker as one whose calls answer piece by piece. Raises ``unsupported`` for one that cannot do that."""
    if not isinstance(invoker, Streamer):
        raise NovaError("unsupported", "calls cannot answer piece by piece here")
    return invoker
