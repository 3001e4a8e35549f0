"""The port through which messages get into topics: an answer means that they are in PostgreSQL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from nova.domain.identity import Scope
from nova.domain.message import MAX_BATCH, MAX_HOPS, NewMessage, Published, check, check_hops, is_topic
from nova.errors import NovaError, invalid, not_found
from nova.ids import new_id
from nova.store import bus_outbox, messages
from nova.store.bus_outbox import Waiting
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.messages import Append, Appended, Entry
from nova.work.grouping import GroupCommit
from nova.work.notices import Notices

_WRITERS = 1
"""Transactions at a time: those of one topic would wait for one another anyway."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What one caller publishes. ``entries`` in his order; by their ids: those that are to wait, and for how long."""

    append: Append
    entries: Sequence[Entry]
    delays: dict[str, float]
    held: bool

    @property
    def named(self) -> bool:
        """Some message may be a duplicate."""
        return any(entry.dedup_key is not None for entry in self.entries)

    @property
    def weight(self) -> int:
        """Bytes, and what rows cost beside them."""
        return sum(entry.size + 500 for entry in self.entries)


class TopicPublisher:
    """Implements :class:`~nova.domain.ports.Publisher`. Requests of one moment share a transaction. ``max_hops``: messages that
    led to one another, one after the other (``events.max_hops``)."""

    def __init__(self, db: Database, notices: Notices, *, max_hops: Callable[[], int] = lambda: MAX_HOPS) -> None:
        self._db = db
        self._max_hops = max_hops
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

        Raises ``not_found``, ``validation_failed``, ``payload_too_large``, ``recursion``, ``queue_full``, ``draining`` or
        ``dependency_unavailable``.
        """
        return await self._put(scope, topic, messages, caller)

    async def keep(self, scope: Scope, topic: str, message: NewMessage, *, hold: bool, caller: str) -> str:
        """Put a message into the outbox, to be published after its delay; ``hold``: not before it is released. Its id."""
        (kept,) = await self._put(scope, topic, [message], caller, held=hold, outbox=True)
        return kept.id

    async def _put(
        self,
        scope: Scope,
        topic: str,
        messages: Sequence[NewMessage],
        caller: str,
        *,
        held: bool = False,
        outbox: bool = False,
    ) -> Sequence[Published]:
        if not is_topic(topic):
            raise not_found("topic", topic[:128])
        if not 0 < len(messages) <= MAX_BATCH:
            raise invalid("messages", f"from 1 to {MAX_BATCH} at once")
        for message in messages:
            check(message)
            check_hops(message, self._max_hops())
        entries = [Entry.of(message.message_id or new_id(), message, caller) for message in messages]
        delays = {
            entry.id: message.delay_s
            for entry, message in zip(entries, messages, strict=True)
            if outbox or message.delay_s > 0
        }
        at_once = [entry for entry in entries if entry.id not in delays]
        return await self._group.put(_Request(Append(scope, topic, at_once, entries), entries, delays, held))

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
        if not any(request.delays or request.named for request in requests):
            async with self._db.connection() as conn:
                outcomes = await messages.append_plain(conn, [request.append for request in requests])
            if all(isinstance(outcome, Appended) for outcome in outcomes):
                return outcomes
            return await self._rest(requests, outcomes)
        async with self._db.transaction() as conn:
            outcomes = await messages.append(conn, [request.append for request in requests])
            await self._delay(conn, requests, outcomes)
        return outcomes

    async def _rest(
        self, requests: Sequence[_Request], outcomes: Sequence[Appended | NovaError]
    ) -> Sequence[Appended | NovaError]:
        """Those that found no topic without a schema: there may be one with a schema."""
        left = [r.append for r, outcome in zip(requests, outcomes, strict=True) if not isinstance(outcome, Appended)]
        async with self._db.transaction() as conn:
            found = iter(await messages.append(conn, left))
        return [outcome if isinstance(outcome, Appended) else next(found) for outcome in outcomes]

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


def _answer(request: _Request, outcome: Appended | NovaError) -> Sequence[Published] | BaseException:
    if isinstance(outcome, NovaError):
        return outcome
    placed = iter(outcome.published)
    return [Published(entry.id, None) if entry.id in request.delays else next(placed) for entry in request.entries]


def _refusal(request: _Request, error: psycopg.Error) -> NovaError:
    if isinstance(error, psycopg.errors.ForeignKeyViolation):  # deleted between the lock and the outbox
        return not_found("topic", request.append.topic)
    return NovaError("bad_payload", "the database does not take this message")
