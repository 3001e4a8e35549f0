"""``POST /v1/topics/{topic}``: what code inside publishes becomes visible when its call succeeds, and not otherwise.

Until then messages wait in this process, with the call: nothing is left behind when the call fails, when it is cancelled, or
when the process dies, because then the call has not succeeded. The answer of the call waits for their commit.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import structlog

from nova import payload
from nova.agent.messages import take
from nova.domain.function import FunctionSnapshot
from nova.domain.message import MAX_BATCH, MAX_PAYLOAD, NewMessage, check, counted
from nova.domain.ports import Publisher
from nova.domain.shadow import SHADOW_VARIABLE
from nova.errors import FunctionError, NovaError, invalid, not_found
from nova.execution.backends.base import WorkerResult
from nova.execution.channel_call import Call
from nova.execution.guest_desk import Question, Reply
from nova.ids import new_id
from nova.payload import too_large
from nova.store.topics import TopicStore

log = structlog.get_logger(__name__)
MAX_BYTES: Final = 8 << 20
"""What one call publishes at most, beside :data:`MAX_BATCH` messages."""
_JSON: Final = {"Content-Type": "application/json"}


class Outgoing:
    """What one call publishes, in its order; see :class:`nova.execution.channel_call.Held`."""

    def __init__(self, publisher: Publisher, snapshot: FunctionSnapshot) -> None:
        self._publisher = publisher
        self._snapshot = snapshot
        self._topics: dict[str, list[NewMessage]] = {}
        self._count = 0
        self._bytes = 0
        self._ended = False

    def add(self, topic: str, message: NewMessage) -> None:
        """Raises ``payload_too_large``, ``validation_failed`` for too many, ``forbidden`` when the call has answered."""
        if self._ended:
            raise NovaError("forbidden", "the call has answered already")
        if self._count >= MAX_BATCH:
            raise invalid("topic", f"a call publishes at most {MAX_BATCH} messages")
        if self._bytes + len(message.payload) > MAX_BYTES:
            raise too_large(MAX_BYTES)
        self._topics.setdefault(topic, []).append(message)
        self._count += 1
        self._bytes += len(message.payload)

    async def end(self, result: WorkerResult) -> WorkerResult:
        """Those of one topic are one transaction. What cannot be published makes the call fail."""
        self._ended = True
        try:
            for topic, messages in self._topics.items():
                await self._publisher.publish(
                    self._snapshot.scope, topic, messages, caller=f"function:{self._snapshot.name}"
                )
        except NovaError as error:
            return _failed(result, error.detail)
        except Exception as error:
            log.exception("messages of a call could not be published", function=self._snapshot.name)
            return _failed(result, type(error).__name__)
        return result


class GuestTopics:
    """Publishing, as instances ask for it."""

    def __init__(self, publisher: Publisher, topics: TopicStore) -> None:
        self._publisher = publisher
        self._topics = topics

    async def publish(self, snapshot: FunctionSnapshot, question: Question) -> Reply:
        """202 with the message's id. In a durable function at once: its steps are kept, whatever becomes of the run."""
        if SHADOW_VARIABLE in snapshot.env:
            raise NovaError("forbidden", "copies of calls (shadow traffic) publish nothing")
        topic = take(question.head, "topic", str)
        message = _message(question)
        if await self._topics.get(snapshot.scope, topic) is None:
            raise not_found("topic", topic[:128])
        call = question.call
        if call is None or snapshot.mode == "durable":
            caller = f"function:{snapshot.name}"
            (told,) = await self._publisher.publish(snapshot.scope, topic, [message], caller=caller)
            return Reply(202, payload.encode({"id": told.id}), _JSON)
        self._outgoing(call, snapshot).add(topic, message)
        return Reply(202, payload.encode({"id": message.message_id}), _JSON)

    def _outgoing(self, call: Call, snapshot: FunctionSnapshot) -> Outgoing:
        if call.done():
            raise NovaError("forbidden", "the call has ended")
        if not isinstance(call.held, Outgoing):
            call.held = Outgoing(self._publisher, snapshot)
        return call.held


def _message(question: Question) -> NewMessage:
    """Raises NovaError for what no topic takes."""
    head, context = question.head, payload.decode(question.context)
    message = NewMessage(
        payload=payload.check(question.payload, limit=MAX_PAYLOAD, empty=b"null"),
        headers=_headers(head),
        ordering_key=_text(head, "ordering_key"),
        dedup_id=_text(head, "dedup_id"),
        delay_s=_seconds(head),
        extensions=counted({}, context.get("hops", 0)),
        traceparent=context.get("traceparent") or None,
        tracestate=context.get("tracestate") or None,
        message_id=new_id(),
    )
    check(message)
    return message


def _text(head: Mapping[str, Any], name: str) -> str | None:
    text = head.get(name)
    if text is not None and not (isinstance(text, str) and text):
        raise invalid(name, "text of at least one character")
    return text


def _seconds(head: Mapping[str, Any]) -> float:
    try:
        seconds = float(head.get("delay_s", 0))
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise invalid("delay_s", "a number of seconds")
    return seconds


def _headers(head: Mapping[str, Any]) -> dict[str, str]:
    try:
        headers = json.loads(head.get("headers", "{}"))
    except (TypeError, ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise invalid("headers", "a JSON object of texts")
    return headers


def _failed(result: WorkerResult, reason: str) -> WorkerResult:
    error = FunctionError("Nova.PublishFailed", f"what the call published could not be committed: {reason}")
    return WorkerResult(None, error, result.stdout, result.stderr)
