"""Calls of functions that runs make: so many of one run at a time, in the name of whoever began it."""

import asyncio
import random

import structlog

from nova.clock import Clock
from nova.domain.call import CallRequest, chain_of
from nova.domain.ports import Invoker
from nova.domain.workflows.state import Call, CallEnd, Failure
from nova.errors import NovaError
from nova.events.acting import acting_for
from nova.events.workflows.live import CALLS_AT_ONCE, Live
from nova.ids import new_id
from nova.store.workflow_runs import ClaimedRun

log = structlog.get_logger(__name__)
_NOT_YET = frozenset({429, 503})
"""Statuses of refusals that say nothing about the call: the function is busy, the platform away."""
_WAIT_S = (1.0, 60.0)


class Calls:
    """What a call ended with is put into :attr:`Live.ended`."""

    def __init__(self, invoker: Invoker, clock: Clock) -> None:
        self._invoker = invoker
        self._clock = clock

    def begin(self, live: Live) -> None:
        """Begin as many of the queued calls as may run at once."""
        while live.queued and len(live.tasks) < CALLS_AT_ONCE:
            call = live.queued.popleft()
            key = (call.ref, call.purpose)
            task = asyncio.create_task(self._invoke(live, call), name=f"{live.claimed.id}/{call.ref}")
            live.tasks[key] = task

    async def _invoke(self, live: Live, call: Call) -> None:
        request = self._request(live.claimed, call)
        started_at, began = self._clock.now(), self._clock.monotonic()

        def end(output: bytes | None = None, error: Failure | None = None, again_s: float | None = None) -> CallEnd:
            duration_ms = round((self._clock.monotonic() - began) * 1000, 3)
            return CallEnd(request.request_id, started_at, duration_ms, output, error, again_s)

        try:
            result = await self._invoker.invoke(request)
        except NovaError as refusal:
            outcome = end(error=failure_of(refusal), again_s=_again_s(refusal))
        except Exception as error:
            log.exception("a node's call failed", run=live.claimed.id)
            outcome = end(error=Failure("Nova.Internal", f"internal error ({type(error).__name__})"))
        else:
            if result.error is None:
                outcome = end(output=result.output or b"null")
            else:
                outcome = end(error=Failure(result.error.type, result.error.message))
        live.tasks.pop((call.ref, call.purpose), None)
        live.ended.append((call, outcome))
        self.begin(live)
        live.heard.set()

    def _request(self, run: ClaimedRun, call: Call) -> CallRequest:
        """In the scope and under the name of whoever began the run."""
        return CallRequest(
            request_id=new_id(),
            scope=run.scope,
            function=call.function,
            payload=call.payload,
            identity=acting_for(run.caller, run.scope),
            received=self._clock.monotonic(),
            qualifier=call.qualifier,
            timeout_ms=max(1, int(call.timeout_s * 1000)),
            trigger="workflow",
            traceparent=run.traceparent,
            tracestate=run.tracestate,
            attempt=max(1, call.attempt),
            caller=f"workflow:{run.workflow}",
            chain=chain_of(run.source),
        )


def failure_of(refusal: NovaError) -> Failure:
    """What a node whose call or run was refused fails with."""
    name = "".join(part.capitalize() for part in refusal.code.split("_"))
    return Failure(f"Nova.{name}", refusal.detail)


def _again_s(refusal: NovaError) -> float | None:
    passes = refusal.status in _NOT_YET or refusal.code == "tenant_suspended"
    if not passes or getattr(refusal, "delivered", "no") != "no":
        return None
    least, most = _WAIT_S
    return min(most, max(least, refusal.retry_after_s or 0)) * random.uniform(1, 1.25)
