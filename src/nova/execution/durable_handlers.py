"""Beginning durable executions over HTTP."""

import json
from typing import Protocol

from nova import payload
from nova.api.durable import BegunExecution, InvokeDurable, WaitExecution
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.domain.names import is_qualifier
from nova.errors import NovaError, invalid
from nova.execution.durable import DurableCalls
from nova.http.handler import Answer, Req, handles

_MIB = 1 << 20


class Resolver(Protocol):
    async def resolve(self, call: CallRequest, deadline: float | None) -> FunctionSnapshot: ...


class DurableBeginHandlers:
    """``invoke-durable``: the function is found as for any call, and the version that it has now is kept."""

    def __init__(
        self, calls: DurableCalls, catalog: Resolver, limits: LimitSettings, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._calls = calls
        self._catalog = catalog
        self._limits = limits
        self._clock = clock

    @handles("function.invoke_durable")
    async def begin(self, req: Req[InvokeDurable, WaitExecution]) -> Answer:
        body, name = req.body, req.params["name"]
        if body.qualifier is not None and not is_qualifier(body.qualifier):
            raise invalid("qualifier", "a version number, an alias, live or $LATEST")
        given = json.dumps(req.raw_body.get("input", {}), ensure_ascii=False, separators=(",", ":")).encode()
        call = CallRequest(
            request_id=req.request_id,
            scope=req.scope,
            function=name,
            payload=payload.check(given, limit=self._limits.sync_payload_mb * _MIB),
            identity=req.identity,
            received=self._clock.monotonic(),
            qualifier=body.qualifier,
            traceparent=req.http.headers.get("traceparent"),
            tracestate=req.http.headers.get("tracestate"),
        )
        snapshot = await self._catalog.resolve(call, None)
        if snapshot.mode != "durable":
            raise NovaError("unsupported", f"function {name!r} is not durable: its mode is {snapshot.mode}")
        started = await self._calls.begin(call, snapshot, body.execution_id, body.timeout_s)
        execution_id = started if isinstance(started, str) else started.id
        status = "running" if isinstance(started, str) else started.status
        if req.query.wait_s:
            until = self._clock.monotonic() + req.query.wait_s
            execution = await self._calls.waits.end(req.scope, execution_id, until)
            status = execution.status
        told = BegunExecution.model_validate({"execution_id": execution_id, "status": status})
        ended = status not in ("running", "suspended")
        return Answer(told, 200 if ended else 202, {"Location": f"/durable-executions/{execution_id}"})
