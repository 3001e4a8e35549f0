"""An invoker that answers by itself, for tests of what is before the executor."""

import asyncio

from nova.domain.call import CallRequest, CallResult, Phases
from nova.errors import FunctionError, NovaError


class FakeInvoker:
    """Echoes the payload, or answers what it was told; remembers every call."""

    def __init__(self) -> None:
        self.calls: list[CallRequest] = []
        self.output: bytes | None = None
        self.error: FunctionError | None = None
        self.refusal: NovaError | None = None
        self.hold: asyncio.Event | None = None
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def invoke(self, call: CallRequest) -> CallResult:
        self.calls.append(call)
        self.began.set()
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
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
