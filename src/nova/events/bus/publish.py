"""The port through which messages get into topics: an answer means that they are in PostgreSQL."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg

from nova.domain.identity import Scope
from nova.domain.message import (
    MAX_BATCH,
    MAX_DELAY_S,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_KEY,
    MAX_PAYLOAD,
    TOPIC,
    NewMessage,
    Published,
)
from nova.errors import NovaError, invalid, not_found
from nova.ids import new_id
from nova.payload import too_large
from nova.store import bus_outbox, messages
from nova.store.bus_outbox import Waiting
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.messages import Append, Appended, Entry
from nova.work.grouping import GroupCommit
from nova.work.notices import Notices

_WRITERS = 1
"""Transactions at a time: those of one topic would wait for one another anyway."""
_topic = re.compile(TOPIC[:-1] + r"\Z")


@dataclass(frozen=True, slots=True)
class _Request:
    """What one caller publishes. ``entries`` in his order; by their ids: those that are to wait, and for how long."""

    append: Append
    entries: Sequence[Entry]
    delays: dict[str, float]
    held: bool

    @property
    def weight(self) -> int:
        return sum(entry.size + 500 for entry in self.entries)


class TopicPublisher:
    """Implements :class:`~nova.domain.ports.Publisher`. Requests of one moment share a transaction."""

    def __init__(self, db: Database, notices: Notices) -> None:
        self._db = db
        self._notices = notices
        self._group: GroupCommit[_Request, Sequence[Published]] = GroupCommit(
            "publish", self._write, writers=_WRITERS, weigh=lambda request: request.weight
        )

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        """Take nothing more; whatever was taken is committed and answered."""
        await self._group.close()

    async def publish(
        self, scope: Scope, topic: str, messages: Sequence[NewMessage], *, caller: str
    ) -> Sequence[Published]:
        """See :class:`~nova.domain.ports.Publisher`: all of them, or none. Those with a delay wait in the outbox.

        Raises ``not_found``, ``validation_failed``, ``payload_too_large``, ``queue_full``, ``draining`` or
        ``dependency_unavailable``.
        """
        return await self._put(scope, topic, [(new_id(), message) for message in messages], caller, held=False)

    async def publish_as(
        self, scope: Scope, topic: str, messages: Sequence[tuple[str, NewMessage]], *, caller: str
    ) -> Sequence[Published]:
        """The same for messages that have their ids already."""
        return await self._put(scope, topic, messages, caller, held=False)

    async def keep(self, scope: Scope, topic: str, message: NewMessage, *, hold: bool, caller: str) -> str:
        """Put a message into the outbox, to be published after its delay; ``hold``: not before it is released. Its id."""
        (kept,) = await self._put(scope, topic, [(new_id(), message)], caller, held=hold, outbox=True)
        return kept.id

    async def _put(
        self,
        scope: Scope,
        topic: str,
        messages: Sequence[tuple[str, NewMessage]],
        caller: str,
        *,
        held: bool,
        outbox: bool = False,
    ) -> Sequence[Published]:
        if not _topic.match(topic):
            raise not_found("topic", topic[:128])
        if not 0 < len(messages) <= MAX_BATCH:
            raise invalid("messages", f"from 1 to {MAX_BATCH} at once")
        for _, message in messages:
            check(message)
        entries = [Entry.of(message_id, message, caller) for message_id, message in messages]
        delays = {message_id: message.delay_s for message_id, message in messages if outbox or message.delay_s > 0}
        at_once = [entry for entry in entries if entry.id not in delays]
        return await self._group.put(_Request(Append(scope, topic, at_once), entries, delays, held))

    async def _write(self, requests: Sequence[_Request]) -> Sequence[Sequence[Published] | BaseException]:
        try:
            outcomes = await self._commit(requests)
        except (psycopg.DataError, psycopg.errors.ForeignKeyViolation) as error:
            if len(requests) == 1:
                return [_refusal(requests[0], error)]
            # something that PostgreSQL does not take must not keep the others' messages from being written
            return [(await self._write([request]))[0] for request in requests]
        for topic_id in {o.topic_id for o in outcomes if isinstance(o, Appended) and o.published}:
            self._notices.tell(Channel.TOPICS, topic_id)
        if any(request.delays and not request.held for request in requests):
            self._notices.tell(Channel.TOPICS, bus_outbox.DUE)
        return [_answer(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]

    async def _commit(self, requests: Sequence[_Request]) -> Sequence[Appended | NovaError]:
        async with self._db.transaction() as conn:
            outcomes = await messages.append(conn, [request.append for request in requests])
            await self._delay(conn, requests, outcomes)
        return outcomes

    async def _delay(
        self, conn: Connection, requests: Sequence[_Request], outcomes: Sequence[Appended | NovaError]
    ) -> None:
        waiting = [
            Waiting(request.append.scope, outcome.topic_id, entry, request.delays[entry.id], request.held)
            for request, outcome in zip(requests, outcomes, strict=True)
            if isinstance(outcome, Appended)
            for entry in request.entries
            if entry.id in request.delays
        ]
        if waiting:
            await bus_outbox.add(conn, waiting)


def check(message: NewMessage) -> None:
    """Raise ``validation_failed`` or ``payload_too_large`` for what no topic takes."""
    if len(message.payload) > MAX_PAYLOAD:
        raise too_large(MAX_PAYLOAD)
    for field, text in (("ordering_key", message.ordering_key), ("dedup_id", message.dedup_id)):
        if text is not None and not 0 < len(text) <= MAX_KEY:
            raise invalid(field, f"1 to {MAX_KEY} characters")
        _storable(field, text)
    if len(message.headers) > MAX_HEADERS:
        raise invalid("headers", f"at most {MAX_HEADERS}")
    _bounded("headers", message.headers.items())
    named = (("id", message.id), ("source", message.source), ("type", message.type), ("subject", message.subject))
    _bounded("attributes", [*((name, text or "") for name, text in named), *message.extensions.items()])
    _bounded("traceparent", [("traceparent", message.traceparent or ""), ("tracestate", message.tracestate or "")])
    if not 0 <= message.delay_s <= MAX_DELAY_S:
        raise invalid("delay_s", f"from 0 to {MAX_DELAY_S}")


def _bounded(field: str, pairs: Iterable[tuple[str, str]]) -> None:
    size = 0
    for name, text in pairs:
        _storable(field, name)
        _storable(field, text)
        size += len(name.encode()) + len(text.encode())
    if size > MAX_HEADER_BYTES:
        raise invalid(field, f"at most {MAX_HEADER_BYTES} bytes together")


def _storable(field: str, text: str | None) -> None:
    if text is None or (text.isascii() and "\0" not in text):
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(field, "has half of a surrogate pair") from None
    if "\0" in text:
        raise invalid(field, "has a NUL character")


def _answer(request: _Request, outcome: Appended | NovaError) -> Sequence[Published] | BaseException:
    if isinstance(outcome, NovaError):
        return outcome
    placed = iter(outcome.published)
    return [Published(entry.id, None) if entry.id in request.delays else next(placed) for entry in request.entries]


def _refusal(request: _Request, error: psycopg.Error) -> NovaError:
    if isinstance(error, psycopg.errors.ForeignKeyViolation):  # deleted between the lock and the outbox
        return not_found("topic", request.append.topic)
    return NovaError("bad_payload", "the database does not take this message")
