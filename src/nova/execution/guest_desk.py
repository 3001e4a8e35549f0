"""What code inside an instance asks of the platform, at the host's end: each question is a task, and ends with its call.

Questions come from the agent, as frames, or from a worker, on the line that its calls come on (:meth:`GuestDesk.asked`).
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog

from nova.agent import frames
from nova.agent.frames import MAX_MESSAGE, Frame, FrameError
from nova.agent.messages import GuestAnswerHead, take
from nova.api import problem
from nova.errors import NovaError, as_refusal, internal
from nova.execution.channel_call import Call
from nova.execution.channel_control import ControlConnection

log = structlog.get_logger(__name__)

LINE_OPS: Final = ("checkpoint", "operations")
"""What a worker may ask on its own line."""
MAX_QUESTIONS: Final = 128
"""Of one instance at once."""
MAX_BYTES: Final = 32 << 20
"""What the questions of one instance may hold of this process's memory, together."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, and in which call.

    ``kind`` is the type of the frame; ``head`` its members as the agent wrote them, none of them proven; ``payload`` any
    bytes. ``deadline`` is the call's, in monotonic seconds; ``context`` what the call was told when it began.
    ``call`` is the call itself; whoever asks on behalf of no call has none.
    """

    kind: int
    head: Mapping[str, Any]
    payload: bytes
    request_id: str
    deadline: float
    context: bytes
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """``body`` is JSON, or nothing."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Serve = Callable[[Question], Awaitable[Reply]]
Quick = Callable[[Question, Callable[[Reply | None], None]], bool]
"""Begins to answer a worker's question without a task, if it is one that can be answered so. Later the callback gets the reply;
None: it has to be asked as any other."""
Tell = Callable[[int, int, bytes], None]
"""Answers a worker's question: its number, status, body."""


class _Asked(msgspec.Struct):
    """A question on a worker's line. ``head`` and ``body`` are as those of a frame."""

    number: int
    request_id: str
    head: dict[str, Any]
    body: msgspec.Raw


_asked: Final = msgspec.json.Decoder(_Asked).decode


class GuestDesk:
    """The questions of one instance. Until ``serve`` is set nothing can be asked."""

    def __init__(self, control: ControlConnection, call_of: Callable[[str], Call | None]) -> None:
        """``call_of`` finds a call that is in flight in this instance: nobody else's can be named."""
        self._control = control
        self._call_of = call_of
        self._tasks: dict[object, asyncio.Task[Reply]] = {}
        self._bytes = 0
        self.serve: Serve | None = None
        self.quick: Quick | None = None

    def heard(self, frame: Frame) -> None:
        """A question, or that nobody waits for its answer any more."""
        if frame.type == frames.CANCEL:
            task = self._tasks.get(take(frame.head, "target", int))
            if task is not None:
                task.cancel()
            return
        tell = functools.partial(self._send, frame)
        try:
            self._begin(frame.id, frame.type, frame.head.get("request_id"), frame.head, frame.payload, tell)
        except NovaError as refusal:
            tell(refused(refusal, ""))

    def asked(self, document: bytes, tell: Tell) -> None:
        """A worker's question on its own line. Raises ``bad_payload`` for what is none."""
        try:
            asked = _asked(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NovaError("bad_payload", f"a worker's question is not valid: {error}") from None

        def answer(reply: Reply) -> None:
            if len(reply.body) > MAX_MESSAGE:
                reply = refused(NovaError("payload_too_large", f"the answer is larger than {MAX_MESSAGE} bytes"), "")
            tell(asked.number, reply.status, reply.body or b"null")

        def begin() -> None:
            try:
                if asked.head.get("op") not in LINE_OPS:
                    raise NovaError("unsupported", f"a worker's own line is for {' and '.join(LINE_OPS)}")
                self._begin(object(), frames.CALL, asked.request_id, asked.head, bytes(asked.body), answer)
            except NovaError as refusal:
                answer(refused(refusal, ""))

        if not self._begin_quickly(asked, answer, begin):
            begin()

    def _begin_quickly(self, asked: _Asked, answer: Callable[[Reply], None], begin: Callable[[], None]) -> bool:
        call = self._call_of(asked.request_id)
        if self.quick is None or call is None:
            return False

        def over(reply: Reply | None) -> None:
            if call.done():
                return  # nobody waits, and the line may have another call by now
            if reply is None:
                begin()
            else:
                answer(reply)

        body = bytes(asked.body)
        question = Question(frames.CALL, asked.head, body, call.request_id, call.deadline, call.context, call)
        try:
            return self.quick(question, over)
        except Exception:
            log.exception("a worker's question failed", request_id=question.request_id)
            return False

    def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    def _begin(
        self,
        key: object,
        kind: int,
        request_id: object,
        head: Mapping[str, Any],
        payload: bytes,
        tell: Callable[[Reply], None],
    ) -> None:
        call = self._call_of(request_id) if isinstance(request_id, str) else None
        if call is None or self.serve is None:
            raise NovaError("forbidden", "X-Nova-Request-Id does not name a call that is in flight in this instance")
        if len(self._tasks) >= MAX_QUESTIONS or key in self._tasks:
            raise NovaError("queue_full", f"this instance asks {MAX_QUESTIONS} things at once", retry_after_s=1)
        if self._bytes + len(payload) > MAX_BYTES:
            raise NovaError("queue_full", f"this instance sends over {MAX_BYTES} bytes at once", retry_after_s=1)
        question = Question(kind, head, payload, call.request_id, call.deadline, call.context, call)
        task = asyncio.ensure_future(self._work(self.serve, question))
        self._tasks[key] = task
        self._bytes += len(payload)
        end_with_call = functools.partial(_cancel, task)
        call.add_done_callback(end_with_call)
        task.add_done_callback(functools.partial(self._ended, key, len(payload), tell, call, end_with_call))

    async def _work(self, serve: Serve, question: Question) -> Reply:
        try:
            return await serve(question)
        except NovaError as refusal:
            return refused(refusal, question.request_id)
        except FrameError as error:
            return refused(NovaError("validation_failed", str(error)), question.request_id)
        except Exception as exc:
            log.exception("a guest's question failed", request_id=question.request_id, kind=question.kind)
            return refused(as_refusal(exc) or internal(), question.request_id)

    def _ended(
        self,
        key: object,
        size: int,
        tell: Callable[[Reply], None],
        call: Call,
        end_with_call: Callable[[object], None],
        task: "asyncio.Task[Reply]",
    ) -> None:
        del self._tasks[key]
        self._bytes -= size
        call.remove_done_callback(end_with_call)
        if not task.cancelled():
            tell(task.result())

    def _send(self, frame: Frame, reply: Reply) -> None:
        kind = frames.CALL_RESP if frame.type == frames.CALL else frames.STATE_RESP
        head = GuestAnswerHead(reply.status, reply.headers)
        try:
            self._control.answer(kind, frame.id, head.as_head(), reply.body)
        except FrameError as error:
            too_large = refused(NovaError("payload_too_large", str(error)), "")
            head = GuestAnswerHead(too_large.status, too_large.headers)
            self._control.answer(kind, frame.id, head.as_head(), too_large.body)


def _cancel(task: "asyncio.Task[Reply]", _call: object) -> None:
    task.cancel()


def refused(error: NovaError, request_id: str) -> Reply:
    """A problem document, as the public API has them."""
    headers = {"Content-Type": problem.MEDIA_TYPE, **problem.headers(error)}
    return Reply(error.status, problem.document(error, request_id), headers)
