"""What a call publishes: with its success and not otherwise, within bounds, and never by halves."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from nova.agent import frames
from nova.domain.identity import Scope
from nova.domain.message import MAX_BATCH, NewMessage, Published
from nova.errors import FunctionError, NovaError
from nova.execution.backends.base import WorkerResult
from nova.execution.channel_call import Call
from nova.execution.channel_deadlines import Deadlines
from nova.execution.guest_desk import Question
from nova.execution.guest_publish import MAX_BYTES, GuestTopics
from nova.execution.snapshots import shadowed
from tests.execution.fakes import make_snapshot

pytestmark = pytest.mark.anyio
DONE = WorkerResult(b"1", None, "out", "err")


class Publisher:
    """Stands for the bus. ``refusal``: what it says to everything."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes, str]] = []
        self.refusal: Exception | None = None

    async def publish(
        self, scope: Scope, topic: str, messages: Sequence[NewMessage], *, caller: str
    ) -> Sequence[Published]:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.published += [(topic, message.payload, caller) for message in messages]
        return [Published(message.message_id or "made", 1) for message in messages]


class Topics:
    async def get(self, scope: Scope, name: str) -> object:
        return None if name == "nothing" else object()


class Rig:
    """One call of function ``hello`` that publishes."""

    def __init__(self, **snapshot: Any) -> None:
        self.publisher = Publisher()
        self.topics = GuestTopics(self.publisher, Topics())  # type: ignore[arg-type]
        self.snapshot = make_snapshot(**snapshot)
        loop = asyncio.get_running_loop()
        self.call = Call(None, Deadlines(), "r", loop.time() + 30)  # type: ignore[arg-type]

    async def publish(self, payload: bytes = b"1", topic: str = "orders", **head: object) -> Any:
        named = {"op": "publish", "topic": topic, **head}
        question = Question(frames.CALL, named, payload, "r", 0.0, b"{}", self.call)
        return json.loads((await self.topics.publish(self.snapshot, question)).body)["id"]


async def test_a_call_publishes_when_it_has_succeeded() -> None:
    rig = Rig()
    for payload, topic in ((b"1", "orders"), (b"2", "others"), (b"3", "orders")):
        await rig.publish(payload, topic)
    assert rig.publisher.published == []
    rig.call.answered(DONE)
    assert not rig.call.done()
    assert await rig.call == DONE
    caller = "function:hello"
    assert rig.publisher.published == [("orders", b"1", caller), ("orders", b"3", caller), ("others", b"2", caller)]
    with pytest.raises(NovaError, match="has ended"):
        await rig.publish()


async def test_what_fails_or_is_cancelled_publishes_nothing() -> None:
    failed, cancelled, overdue = Rig(), Rig(), Rig()
    for rig in (failed, cancelled, overdue):
        await rig.publish()
    failed.call.answered(WorkerResult(None, FunctionError("ValueError", "no")))
    assert (await failed.call).error == FunctionError("ValueError", "no")
    cancelled.call.owner = _Owner()  # type: ignore[assignment]
    cancelled.call.cancel()
    cancelled.call.answered(DONE)
    overdue.call.settle(None, FunctionError("Nova.Timeout", "late"))
    overdue.call.answered(DONE)
    await asyncio.sleep(0.01)
    assert [rig.publisher.published for rig in (failed, cancelled, overdue)] == [[], [], []]


class _Owner:
    def call_overdue(self, call: Call, error: object) -> None:
        return


@pytest.mark.parametrize("refusal", [NovaError("dependency_unavailable", "away"), RuntimeError("a fault")])
async def test_a_call_whose_messages_cannot_be_kept_fails(refusal: Exception) -> None:
    rig = Rig()
    await rig.publish()
    rig.publisher.refusal = refusal
    rig.call.answered(DONE)
    told = await rig.call
    assert told.error is not None
    assert (told.output, told.error.type, told.stdout, told.stderr) == (None, "Nova.PublishFailed", "out", "err")


async def test_what_cannot_be_published_is_refused_at_once() -> None:
    rig = Rig()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"topic": "nothing"}, "not_found"),
        ({"payload": b"{"}, "bad_payload"),
        ({"payload": b'"' + b"x" * (1 << 20) + b'"'}, "payload_too_large"),
        ({"ordering_key": "x" * 257}, "validation_failed"),
        ({"dedup_id": ""}, "validation_failed"),
        ({"delay_s": "soon"}, "validation_failed"),
        ({"delay_s": "inf"}, "validation_failed"),
        ({"delay_s": "-1"}, "validation_failed"),
        ({"headers": "[]"}, "validation_failed"),
        ({"headers": '{"a": 1}'}, "validation_failed"),
    ]
    for given, code in cases:
        with pytest.raises(NovaError) as refused:
            await rig.publish(**given)
        assert refused.value.code == code, given
    for _ in range(MAX_BATCH):
        await rig.publish()
    with pytest.raises(NovaError, match="at most 500"):
        await rig.publish()
    much, payload = Rig(), b'"' + b"x" * ((1 << 20) - 2) + b'"'
    for _ in range(MAX_BYTES // len(payload)):
        await much.publish(payload)
    with pytest.raises(NovaError, match="the limit is"):
        await much.publish(payload)


async def test_durable_functions_publish_at_once_and_copies_never() -> None:
    durable, copy = Rig(mode="durable"), Rig()
    await durable.publish()
    assert [topic for topic, _, _ in durable.publisher.published] == ["orders"]
    assert durable.call.held is None
    copy.snapshot = shadowed(copy.snapshot)
    with pytest.raises(NovaError, match="publish nothing"):
        await copy.publish()
