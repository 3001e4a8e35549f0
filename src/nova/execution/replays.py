"""Answers about replays: a call's kept input runs again, as whatever version is asked for."""

import json
from collections.abc import Awaitable, Callable
from typing import Protocol

from nova import payload
from nova.api.invocations import CallError
from nova.api.replays import Difference, End, Replay
from nova.api.table import Empty, Model
from nova.clock import Clock
from nova.domain import documents
from nova.domain.call import AsyncOptions, CallRequest, CallResult
from nova.domain.documents import ABSENT, find
from nova.domain.ports import Acceptor, Invoker
from nova.errors import FunctionError, NovaError, not_found
from nova.execution.catalog import Catalog
from nova.execution.records import MAX_SHOWN_DEPTH, call_id
from nova.execution.shadow import is_streamed
from nova.http.handler import Answer, Req, handles
from nova.security import access
from nova.store.db import Row
from nova.store.invocations import InvocationStore
from nova.telemetry import MASK


class Ports(Protocol):
    """Who runs calls, and who queues them; known when the process is put together."""

    @property
    def invoker(self) -> Invoker | None: ...

    @property
    def acceptor(self) -> Acceptor | None: ...


class ReplayHandlers:
    """``settle`` waits until what this process has recorded is readable."""

    def __init__(
        self,
        store: InvocationStore,
        catalog: Catalog,
        ports: Ports,
        settle: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._ports = ports
        self._settle = settle
        self._clock = clock

    @handles("invocation.replay")
    async def replay(self, req: Req[Empty, Model]) -> Answer:
        wanted = req.query.model_dump()
        row = await self._record(req)
        call = CallRequest(
            request_id=req.request_id,
            scope=req.scope,
            function=row["function_name"],
            payload=await self._input(req, row),
            identity=req.identity,
            received=self._clock.monotonic(),
            qualifier=wanted["qualifier"] or row["qualifier"],
            caller=f"replay:{row['id']}",
        )
        if wanted["async"]:
            return await self._queued(call)
        return Answer(_compared(row, await self._run(call)))

    async def _record(self, req: Req[Empty, Model]) -> Row:
        """Raises ``not_found`` also for a call of a function that the caller may not see, ``forbidden``."""
        request_id = call_id(req.params["id"])
        await self._settle()
        row = await self._store.get(req.scope, request_id)
        if row is None or not access.allowed(req.identity, "log:read", row["function_name"]):
            raise not_found("call", req.params["id"])
        for permission in ("payload:read", "function:invoke"):
            access.require(req.identity, permission, row["function_name"])
        return row

    async def _input(self, req: Req[Empty, Model], row: Row) -> bytes:
        """What the call was given, if all of it was kept. Raises ``gone``."""
        text: str | None = row["input"]
        if text is None:
            raise NovaError("gone", "the input was not kept: capture is off for it, or it is over capture.max_kb")
        entry = await self._catalog.entry(req.scope, row["function_name"])
        if entry is None or entry.record.id != str(row["function_id"]):
            raise NovaError("gone", "the function of this call was deleted")
        redacted = entry.record.settings.recorded.capture.redact
        if redacted:
            document = payload.decode(text)
            if any(find(document, pointer) == MASK for pointer in redacted):
                raise NovaError("gone", "parts of the input were redacted when it was kept")
        return payload.check(text.encode(), limit=len(text.encode()))

    async def _queued(self, call: CallRequest) -> Answer:
        if self._ports.acceptor is None:
            raise NovaError("unsupported", "async is not available here")
        accepted = await self._ports.acceptor.accept(call, AsyncOptions())
        body = {"invocation_id": accepted.invocation_id, "status": accepted.status, "function": call.function}
        return Answer(body, 202, {"Location": f"/async-invocations/{accepted.invocation_id}"})

    async def _run(self, call: CallRequest) -> CallResult:
        """To its end; running out of time is one, as it is for the call that is replayed."""
        if self._ports.invoker is None:
            raise NovaError("unsupported", "calls cannot be run here")
        began = self._clock.monotonic()
        try:
            return await self._ports.invoker.invoke(call)
        except NovaError as refusal:
            if refusal.code != "timeout" or "version" not in refusal.extra:
                raise
            duration_us = int((self._clock.monotonic() - began) * 1e6)
            error = FunctionError("Nova.Timeout", refusal.detail)
            return CallResult(call.request_id, refusal.extra["version"], None, error, duration_us, False, "")


def _compared(row: Row, result: CallResult) -> Replay:
    original = End(
        request_id=str(row["id"]),
        version=row["version"],
        status=row["status"],
        error=None
        if row["error_kind"] is None
        else CallError(type=row["error_kind"], message=row["error_message"], stack=row["error_stack"] or []),
        duration_ms=row["duration_ms"],
    )
    replay = End(
        request_id=result.request_id,
        version=result.version,
        status="success" if result.error is None else "error",
        error=None if result.error is None else CallError.model_validate(result.error.as_dict()),
        duration_ms=result.duration_us / 1000,
    )
    same = _type(original) == _type(replay)
    before: str | None = row["output"]
    if not same or before is None or result.output is None or is_streamed(before.encode()):
        return Replay(original=original, replay=replay, compared="status", same=same, differences=[])
    found = _differences(before, result.output)
    return Replay(original=original, replay=replay, compared="output", same=not found, differences=found)


def _type(end: End) -> str | None:
    return None if end.error is None else end.error.type


def _differences(before: str, after: bytes) -> list[Difference]:
    try:
        found = documents.differences(payload.decode(before), payload.decode(after))
    except (ValueError, RecursionError):  # a number that no machine type holds
        return [] if json.loads(before) == json.loads(after) else [Difference(path="", sides=[])]
    return [
        Difference(
            path=one.path,
            sides=[side for side, value in (("before", one.before), ("after", one.after)) if value is not ABSENT],
            before=_shown(one.before),
            after=_shown(one.after),
        )
        for one in found
    ]


def _shown(value: object) -> object:
    return None if value is ABSENT or not documents.within(value, MAX_SHOWN_DEPTH) else value
