"""A call in flight: the future of its result, its deadline and its pieces in one object."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from nova.agent.lines import PrintBuffer
from nova.errors import FunctionError
from nova.execution.backends.base import WorkerResult
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_stream import Collected, Stream

if TYPE_CHECKING:
    from nova.execution.channel_line import WorkerLine

_STREAM_LATE: Final = "the stream had not ended when the time of the whole call was up (timeout_s, or the caller's own)"


class LineOwner(Protocol):
    """What a line tells the channel."""

    def line_free(self, line: "WorkerLine") -> None:
        """It can take another call."""
        ...

    def line_asks(self, line: "WorkerLine", document: bytes) -> None:
        """The worker asks something; :meth:`WorkerLine.tell` answers."""
        ...

    def line_ended(self, line: "WorkerLine") -> None:
        """The worker closed its end."""
        ...

    def line_broken(self, line: "WorkerLine", reason: str) -> None:
        """The worker said what it must not."""
        ...

    def line_ending(self, line: "WorkerLine") -> None:
        """The worker has said its last answer and is about to end."""
        ...

    def call_overdue(self, call: "Call", error: FunctionError | None) -> None:
        """A call in flight ran out of time (``error``) or was cancelled (None)."""
        ...


class Held(Protocol):
    """What a call has left for its end."""

    async def end(self, result: WorkerResult) -> WorkerResult:
        """Do it, as its worker has answered without an error; what the call is told then. Raises nothing."""
        ...


class Call(asyncio.Future[WorkerResult]):
    """A call in flight and the future of its result in one object. ``line`` is None while it waits for a worker."""

    line: "WorkerLine | None" = None
    stdout: PrintBuffer | None = None
    stderr: PrintBuffer | None = None
    heard: Callable[[WorkerResult], None] | None = None
    held: Held | None = None
    pieces: Collected | Stream | None = None
    _ending: "asyncio.Future[None] | None" = None

    def __init__(
        self, owner: LineOwner, deadlines: Deadlines, request_id: str, deadline: float, context: bytes = b"{}"
    ) -> None:
        super().__init__()
        self.context = context
        self.owner = owner
        self.deadlines = deadlines
        self.request_id = request_id
        self.deadline = deadline
        deadlines.add(self)

    def listen(self, heard: Callable[[WorkerResult], None]) -> None:
        """Have the result told in the callback that reads it. Other ends are told soon after, when the line and its
        instance have drawn their consequences. A cancelled call tells nothing."""
        if self.done():
            self.get_loop().call_soon(heard, self.result())
        else:
            self.heard = heard

    def settle(self, output: bytes | None, error: FunctionError | None, stdout: str = "", stderr: str = "") -> None:
        """End it, unless its caller has gone meanwhile."""
        self._over()
        if not self.done():
            result = WorkerResult(output, error, stdout, stderr)
            self.set_result(result)
            heard, self.heard = self.heard, None
            if heard is not None:
                self.get_loop().call_soon(heard, result)

    def answered(self, result: WorkerResult) -> None:
        """End it with what its worker said; whoever listens hears it now."""
        self._over()
        if self.done():
            return
        if self.held is not None and result.error is None:
            self._ending = asyncio.ensure_future(self._end(self.held, result))  # kept: nobody else holds it
        else:
            self._tell(result)

    def _tell(self, result: WorkerResult) -> None:
        if not self.done():
            self.set_result(result)
            heard, self.heard = self.heard, None  # or the two would keep each other alive
            if heard is not None:
                heard(result)

    async def _end(self, held: Held, result: WorkerResult) -> None:
        """The answer waits until what depends on it is done."""
        self._tell(await held.end(result))

    def cancel(self, msg: Any = None) -> bool:
        """The caller has gone: the future is cancelled now, the worker is told or ended."""
        if not super().cancel(msg):
            return False
        self._over()
        self.owner.call_overdue(self, None)
        return True

    def expire(self) -> None:
        if not self.done():
            text = "the call ran out of time" if not isinstance(self.pieces, Stream) else _STREAM_LATE
            self.owner.call_overdue(self, FunctionError("Nova.Timeout", text))

    def _over(self) -> None:
        self.deadlines.discard(self)
        if self.pieces is not None:
            self.pieces.close()
