"""An invoker that answers by itself, for tests of what is before the executor."""

import asyncio
from collections.abc import AsyncIterator, Callable

from nova.domain.call import CallRequest, CallResult, Phases
from nova.domain.pieces import Printed
from nova.domain.stream import Piece, Sink
from nova.errors import FunctionError, NovaError

Script = Callable[[CallRequest], AsyncIterator[Piece | Printed]]


class FakeInvoker:
    """Echoes the payload, or answers what it was told; remembers every call.

    Streamed calls give what ``script`` yields, at the speed of their sink; ``given`` counts the pieces that were taken.
    """

    def __init__(self) -> None:
        self.calls: list[CallRequest] = []
        self.streamed: list[CallRequest] = []
        self.output: bytes | None = None
        self.error: FunctionError | None = None
        self.refusal: NovaError | None = None
        self.hold: asyncio.Event | None = None
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.script: Script | None = None
        self.given = 0

    async def invoke(self, call: CallRequest) -> CallResult:
        self.calls.append(call)
        self.began.set()
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return self._result(call)

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        self.calls.append(call)
        self.streamed.append(call)
        self.began.set()
        if self.refusal is not None and self.script is None:
            raise self.refusal
        sink.started(7, cold_start=False)
        room = asyncio.Event()
        sink.on_drained(room.set)
        try:
            async for item in self._script(call):
                if isinstance(item, Printed):
                    sink.printed(item.stream, item.text)
                    continue
                self.given += 1
                room.clear()
                if not sink.piece(item):
                    await room.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self._result(call)

    async def _script(self, call: CallRequest) -> AsyncIterator[Piece | Printed]:
        if self.script is None:
            yield Printed("stdout", "printed\n")
            return
        async for item in self.script(call):
            yield item

    def _result(self, call: CallRequest) -> CallResult:
        if self.refusal is not None:
            raise self.refusal
        return CallResult(
            request_id=call.request_id,
            version=7,
            output=None if self.error else (self.output if self.output is not None else call.payload),
            error=self.error,
            duration_us=412,
            cold_start=False,
            instance_id="i-1",
            phases=Phases(queue_us=5, handler_us=400),
            stdout="printed\n",
        )
