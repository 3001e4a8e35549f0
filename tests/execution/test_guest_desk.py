"""The questions of one instance at the host's end: whose call, how many, and when they end."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nova.agent import frames
from nova.agent.frames import Frame
from nova.errors import NovaError
from nova.execution import guest_desk
from nova.execution.guest_desk import GuestDesk, Question, Reply
from nova.payload import decode

pytestmark = pytest.mark.anyio


class InFlight(asyncio.Future[Any]):
    request_id, deadline, context = "r1", 0.0, b"{}"


class Control:
    """The connection: what it was told to answer."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[int, bytes]] = {}

    def answer(self, kind: int, frame_id: int, head: Mapping[str, Any], payload: bytes = b"") -> None:
        assert kind == frames.CALL_RESP
        self.answers[frame_id] = head["status"], payload


class Desk:
    def __init__(self) -> None:
        self.control, self.call, self.gate = Control(), InFlight(), asyncio.Event()
        self.cancelled = 0
        calls: dict[str, Any] = {"r1": self.call}
        self.desk = GuestDesk(self.control, calls.get)  # type: ignore[arg-type]
        self.desk.serve = self._serve

    async def _serve(self, question: Question) -> Reply:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Reply(200, b"%d" % len(question.payload))

    async def ask(self, number: int, size: int = 0, request_id: object = "r1") -> None:
        self.desk.heard(Frame(frames.CALL, number, {"request_id": request_id}, b"x" * size))
        await asyncio.sleep(0)

    def code(self, number: int) -> str:
        return str(decode(self.control.answers[number][1])["code"])


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_one_instance_asks_at_once_is_bounded() -> None:
    desk, each = Desk(), guest_desk.MAX_BYTES // 4
    for number in (2, 4, 6, 8):
        await desk.ask(number, each)
    await desk.ask(10, 1)
    assert desk.code(10) == "queue_full"
    for number in range(12, 12 + 2 * (guest_desk.MAX_QUESTIONS - 4), 2):
        await desk.ask(number)
    await desk.ask(1000)
    assert desk.code(1000) == "queue_full"
    assert len(desk.control.answers) == 2, "what was taken waits"
    desk.gate.set()
    await settle()
    assert desk.control.answers[2] == (200, b"%d" % each)
    assert len(desk.control.answers) == guest_desk.MAX_QUESTIONS + 2
    await desk.ask(2000, each)
    await settle()
    assert desk.control.answers[2000][0] == 200


async def test_questions_end_with_their_call_or_when_nobody_waits() -> None:
    desk = Desk()
    for number in (2, 4, 6):
        await desk.ask(number)
    desk.desk.heard(Frame(frames.CANCEL, 0, {"target": 4}))
    await settle()
    assert desk.cancelled == 1
    desk.call.set_result(None)
    await settle()
    assert desk.cancelled == 3
    assert desk.control.answers == {}


@pytest.mark.parametrize("request_id", ["another", "", None, 7])
async def test_only_a_call_in_flight_may_be_named(request_id: object) -> None:
    desk = Desk()
    await desk.ask(2, request_id=request_id)
    assert (desk.control.answers[2][0], desk.code(2)) == (403, "forbidden")


async def test_a_worker_asks_on_its_own_line_and_nobody_for_another_call() -> None:
    desk = Desk()
    told: list[tuple[int, int, bytes]] = []

    def ask(document: bytes) -> None:
        desk.desk.asked(document, lambda *answer: told.append(answer))

    ask(b'{"number": 3, "request_id": "r1", "head": {"op": "checkpoint"}, "body": [1, 2]}')
    await settle()
    assert told == [], "it is being worked on"
    desk.gate.set()
    await settle()
    assert told.pop() == (3, 200, b"6")
    for number, question in enumerate((b'"request_id": "r2"', b'"request_id": ""')):
        ask(b'{"number": %d, %b, "head": {"op": "checkpoint"}, "body": {}}' % (number, question))
        assert told.pop()[:2] == (number, 403)
    for document in (
        b"{}",
        b"1",
        b'{"number": "3"}',
        b'{"number": 3, "request_id": "r1", "head": 1, "body": 2}',
        b"\xff",
    ):
        with pytest.raises(NovaError) as wrong:
            ask(document)
        assert wrong.value.code == "bad_payload"
    desk.gate.clear()
    ask(b'{"number": 5, "request_id": "r1", "head": {"op": "invoke"}, "body": {}}')
    assert told.pop()[:2] == (5, 422)
    ask(b'{"number": 4, "request_id": "r1", "head": {"op": "operations"}, "body": null}')
    await settle()
    desk.call.set_result(None)
    await settle()
    assert (told, desk.cancelled) == ([], 1), "a question ends with its call"


async def test_what_can_be_answered_without_a_task_is_and_all_else_goes_the_usual_way() -> None:
    desk = Desk()
    desk.gate.set()
    told: list[tuple[int, int, bytes]] = []
    begun: list[tuple[bytes, Callable[[Reply | None], None]]] = []

    def quick(question: Question, done: Callable[[Reply | None], None]) -> bool:
        if question.payload == b'"bug"':
            raise ValueError("a bug")
        begun.append((question.payload, done))
        return question.payload != b'"no"'

    def ask(number: int, body: bytes) -> None:
        line = b'{"number": %d, "request_id": "r1", "head": {"op": "checkpoint"}, "body": %b}' % (number, body)
        desk.desk.asked(line, lambda *answer: told.append(answer))

    desk.desk.quick = quick
    ask(1, b'"yes"')
    assert (told, begun[-1][0]) == ([], b'"yes"')
    begun[-1][1](Reply(200, b"1"))
    assert told == [(1, 200, b"1")], "in the callback itself"
    ask(2, b'"later"')
    begun[-1][1](None)
    for number, body in ((3, b'"no"'), (4, b'"bug"')):
        ask(number, body)
    await settle()
    assert sorted(told) == [(1, 200, b"1"), (2, 200, b"7"), (3, 200, b"4"), (4, 200, b"5")]
    ask(5, b'"yes"')
    desk.call.set_result(None)
    begun[-1][1](Reply(200, b"1"))
    assert len(told) == 4, "the line may have another call by now"
