"""Messages of topics in PostgreSQL: appended under the lock of their topic's head, read by sequence.

A sequence has no gaps and becomes visible in its order, so a reader at N never meets a message below N later. Whoever
publishes notifies :attr:`Channel.TOPICS` with the topic's id after the commit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nova import payload
from nova.clock import rfc3339
from nova.domain.identity import Scope
from nova.domain.message import NewMessage, Published
from nova.domain.topic import misfit
from nova.errors import NovaError, not_found
from nova.store.db import Connection, Database, Queries, Row

_sql = Queries("messages")
_SWEPT_TOPICS = 1000
"""Topics that one sweep looks at."""


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message as it is kept. ``payload`` is JSON on one line.

    ``attributes`` are those of CloudEvents that the publisher gave (``id``, ``source``, ``type``, ``subject``, ``time`` as
    RFC 3339 text, extensions), by their names. ``size`` in bytes.
    """

    topic_id: str
    sequence: int
    id: str
    payload: bytes
    headers: Mapping[str, str]
    ordering_key: str | None
    attributes: Mapping[str, str]
    traceparent: str | None
    tracestate: str | None
    size: int
    published_by: str
    published_at: datetime


@dataclass(frozen=True, slots=True)
class Ends:
    """The oldest message that is kept and the newest; ``first`` is ``last`` + 1 when there is none. ``bytes`` ever published."""

    first: int
    last: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A message on its way into a topic. ``dedup_key`` is :func:`dedup_key`; ``size`` in bytes."""

    id: str
    payload: str
    headers: str | None
    ordering_key: str | None
    attributes: str | None
    dedup_key: bytes | None
    traceparent: str | None
    tracestate: str | None
    size: int
    caller: str

    @classmethod
    def of(cls, message_id: str, message: NewMessage, caller: str) -> "Entry":
        attributes = _attributes(message)
        headers = payload.encode(dict(message.headers)).decode() if message.headers else None
        return cls(
            id=message_id,
            payload=message.payload.decode(),
            headers=headers,
            ordering_key=message.ordering_key,
            attributes=payload.encode(attributes).decode() if attributes else None,
            dedup_key=dedup_key(message),
            traceparent=message.traceparent,
            tracestate=message.tracestate,
            size=len(message.payload) + len(headers or ""),
            caller=caller,
        )


@dataclass(frozen=True, slots=True)
class Append:
    """What one request publishes to one topic: all of it, or nothing. ``offered``: everything that has to fit its schema."""

    scope: Scope
    topic: str
    entries: Sequence[Entry]
    offered: Sequence[Entry] = ()


@dataclass(frozen=True, slots=True)
class Appended:
    """``published`` in the order of the entries."""

    topic_id: str
    published: Sequence[Published]


def dedup_key(message: NewMessage) -> bytes | None:
    """What names the message for deduplication: its ``dedup_id``, else CloudEvents' source and id; None: nothing does."""
    if message.dedup_id is not None:
        return hashlib.sha256(b"d" + message.dedup_id.encode()).digest()
    if message.source is not None and message.id is not None:
        return hashlib.sha256(f"c{message.source}\0{message.id}".encode()).digest()
    return None


async def append(conn: Connection, appends: Sequence[Append]) -> list[Appended | NovaError]:
    """Write messages in few statements, in a transaction; for each request, in order, what became of it.

    Holds the heads of all topics until the transaction ends. An error is ``not_found``: there is no such topic; or
    ``validation_failed``: something that is offered does not fit its schema.
    """
    heads = await _lock(conn, appends)
    known = [(_accepting(heads, request), request) for request in appends]
    pairs = [(head, entry) for head, request in known if isinstance(head, _Head) for entry in request.entries]
    stands = await _duplicates(conn, pairs)
    batch = _Batch()
    for head, entry in pairs:
        if entry.id not in stands:
            batch.add(head, entry)
    if batch.topics:
        await batch.write(conn)
    return [
        head
        if isinstance(head, NovaError)
        else Appended(head.id, [_outcome(entry, stands, batch) for entry in request.entries])
        for head, request in known
    ]


async def append_plain(conn: Connection, appends: Sequence[Append]) -> list[Appended | NovaError]:
    """The same in one statement without a transaction, for messages without ``dedup_key`` and topics without a schema: any other
    topic is ``not_found``."""
    names = list({(a.scope.tenant, a.scope.namespace, a.topic): None for a in appends})
    ends = {name: _Head(str(no), 0, 0, 0) for no, name in enumerate(names)}
    of = [ends[a.scope.tenant, a.scope.namespace, a.topic] for a in appends]
    batch = _Batch()
    for head, request in zip(of, appends, strict=True):
        for entry in request.entries:
            batch.add(head, entry)
    rows = await conn.fetch(
        _sql.append_plain,
        nos=list(range(len(names))),
        tenants=[name[0] for name in names],
        namespaces=[name[1] for name in names],
        names=[name[2] for name in names],
        counts=[head.last for head in ends.values()],
        totals=[head.bytes for head in ends.values()],
        topics=[int(topic) for topic in batch.topics],
        **batch.columns,
    )
    found = {str(row["no"]): (row["id"], row["last_sequence"]) for row in rows}
    outcomes: list[Appended | NovaError] = []
    for head, request in zip(of, appends, strict=True):
        if head.id not in found:
            outcomes.append(not_found("topic", request.topic))
            continue
        topic_id, last = found[head.id]
        placed = [Published(entry.id, last + batch.placed[entry.id]) for entry in request.entries]
        outcomes.append(Appended(topic_id, placed))
    return outcomes


@dataclass(slots=True)
class _Head:
    id: str
    window_s: int
    last: int
    bytes: int
    schema: dict[str, Any] | None = None


def _accepting(heads: Mapping[tuple[str, str, str], _Head], request: Append) -> _Head | NovaError:
    head = heads.get((request.scope.tenant, request.scope.namespace, request.topic))
    if head is None:
        return not_found("topic", request.topic)
    return head if head.schema is None else misfit(head.schema, [entry.payload for entry in request.offered]) or head


async def _lock(conn: Connection, appends: Sequence[Append]) -> dict[tuple[str, str, str], _Head]:
    names = list({(a.scope.tenant, a.scope.namespace, a.topic): None for a in appends})
    rows = await conn.fetch(
        _sql.lock_by_name,
        tenants=[name[0] for name in names],
        namespaces=[name[1] for name in names],
        names=[name[2] for name in names],
    )
    return {
        (row["tenant_id"], row["namespace"], row["name"]): _Head(
            row["id"], row["dedup_window_s"], row["last_sequence"], row["bytes"], row["schema"]
        )
        for row in rows
    }


class _Batch:
    """Messages of one transaction, by column."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.sequences: list[int] = []
        self.positions: list[int] = []
        self.entries: list[Entry] = []
        self.heads: dict[str, _Head] = {}
        self.placed: dict[str, int] = {}

    def add(self, head: _Head, entry: Entry) -> None:
        head.last += 1
        self.heads[head.id] = head
        self.topics.append(head.id)
        self.sequences.append(head.last)
        self.positions.append(head.bytes)
        self.entries.append(entry)
        self.placed[entry.id] = head.last
        head.bytes += entry.size

    @property
    def columns(self) -> dict[str, Sequence[object]]:
        entries = self.entries
        return {
            "sequences": self.sequences,
            "positions": self.positions,
            "ids": [entry.id for entry in entries],
            "payloads": [entry.payload for entry in entries],
            "headers": [entry.headers for entry in entries],
            "ordering_keys": [entry.ordering_key for entry in entries],
            "attributes": [entry.attributes for entry in entries],
            "traceparents": [entry.traceparent for entry in entries],
            "tracestates": [entry.tracestate for entry in entries],
            "sizes": [entry.size for entry in entries],
            "callers": [entry.caller for entry in entries],
        }

    async def write(self, conn: Connection) -> None:
        entries, heads = self.entries, list(self.heads.values())
        await conn.run(
            _sql.append,
            heads=[head.id for head in heads],
            lasts=[head.last for head in heads],
            totals=[head.bytes for head in heads],
            topics=self.topics,
            **self.columns,
        )
        named = [
            (topic, entry.dedup_key, sequence)
            for topic, entry, sequence in zip(self.topics, entries, self.sequences, strict=True)
            if entry.dedup_key is not None
        ]
        if named:
            await conn.run(
                _sql.place_keys,
                topics=[name[0] for name in named],
                keys=[name[1] for name in named],
                sequences=[name[2] for name in named],
            )


@dataclass(frozen=True, slots=True)
class _Standing:
    """The earlier message that an entry repeats: one of before (``sequence`` is known), or one of the same batch."""

    id: str
    sequence: int


async def _duplicates(conn: Connection, pairs: Sequence[tuple[_Head, Entry]]) -> dict[str, _Standing]:
    """By the id of each entry that is not to be written: what stands for it."""
    first: dict[tuple[str, bytes], tuple[_Head, Entry]] = {}
    for head, entry in pairs:
        if entry.dedup_key is not None and head.window_s:
            first.setdefault((head.id, entry.dedup_key), (head, entry))
    if not first:
        return {}
    wanted = list(first.items())
    taken = await conn.fetch(
        _sql.take_keys,
        topics=[key[0] for key, _ in wanted],
        keys=[key[1] for key, _ in wanted],
        ids=[entry.id for _, (_, entry) in wanted],
        windows=[head.window_s for _, (head, _) in wanted],
    )
    won = {row["id"] for row in taken}
    held: dict[tuple[str, bytes], _Standing] = {}
    if lost := [key for key, (_, entry) in wanted if entry.id not in won]:
        rows = await conn.fetch(_sql.held_keys, topics=[key[0] for key in lost], keys=[key[1] for key in lost])
        held = {(row["topic_id"], bytes(row["key"])): _Standing(row["id"], row["sequence"]) for row in rows}
    stands = {}
    for head, entry in pairs:
        key = (head.id, entry.dedup_key or b"")
        if key in first and entry.id not in won:
            stands[entry.id] = held.get(key) or _Standing(first[key][1].id, 0)
    return stands


def _outcome(entry: Entry, stands: Mapping[str, _Standing], batch: _Batch) -> Published:
    standing = stands.get(entry.id)
    if standing is None:
        return Published(entry.id, batch.placed[entry.id])
    return Published(standing.id, standing.sequence or batch.placed[standing.id], duplicate=True)


async def ends(db: Connection | Database, topic_id: str) -> Ends | None:
    """None: there is no such topic."""
    row = await db.one(_sql.ends, topic=topic_id)
    return None if row is None else Ends(row["first_sequence"], row["last_sequence"], row["bytes"])


async def read_after(
    db: Connection | Database, topic_id: str, after_sequence: int, limit: int, *, ordering_key: str | None = None
) -> list[MessageRow]:
    """The messages that are kept after a sequence, oldest first; ``ordering_key``: only that key's."""
    wanted = {"topic": topic_id, "after": after_sequence, "limit": limit}
    if ordering_key is None:
        rows = await db.fetch(_sql.read_after, **wanted)
    else:
        rows = await db.fetch(_sql.read_key, **wanted, ordering_key=ordering_key)
    return [_message(row) for row in rows]


async def by_id(db: Connection | Database, topic_id: str, ids: Sequence[str]) -> list[MessageRow]:
    """Those of ``ids`` that are kept, by sequence."""
    return [_message(row) for row in await db.fetch(_sql.by_id, topic=topic_id, ids=list(ids))]


async def by_sequence(db: Connection | Database, topic_id: str, sequences: Sequence[int]) -> list[MessageRow]:
    """Those of ``sequences`` that are kept, in order."""
    return [_message(row) for row in await db.fetch(_sql.by_sequence, topic=topic_id, sequences=list(sequences))]


async def sequence_at(db: Connection | Database, topic_id: str, at: datetime) -> int:
    """The first kept message published at or after ``at``; the one that is published next when there is none.

    Raises LookupError for a topic that is not there.
    """
    return _sequence(topic_id, await db.one(_sql.sequence_at, topic=topic_id, at=at))


class MessageRetention:
    """Removes what is past its topic's age or size, without asking who has read it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def sweep(self, now: datetime, limit: int) -> int:
        """Move the beginning of topics to where it belongs, and delete up to ``limit`` messages before it."""
        for row in await self._db.fetch(_sql.past_retention, now=now, limit=_SWEPT_TOPICS):
            await self._move(row, now)
        gone = await self._db.run(_sql.delete_past, limit=limit)
        if gone < limit:
            gone += await self._db.run(_sql.delete_orphans, limit=limit - gone)
        if gone < limit:
            await self._db.run(_sql.delete_heads)
        return gone

    async def sweep_keys(self, now: datetime, limit: int) -> int:
        """Forget names of messages whose window is over."""
        return await self._db.run(_sql.delete_keys, now=now, limit=limit)

    async def _move(self, row: Row, now: datetime) -> None:
        topic_id = row["id"]
        keep = await self._db.one(_sql.sequence_at, topic=topic_id, at=now - timedelta(hours=row["retention_hours"]))
        first = _sequence(topic_id, keep)
        if row["max_retained_mb"] is not None:
            position = row["bytes"] - (row["max_retained_mb"] << 20)
            by_size = await self._db.one(_sql.sequence_of_position, topic=topic_id, position=position)
            first = max(first, _sequence(topic_id, by_size))
        await self._db.run(_sql.keep_from, topic=topic_id, sequence=first)


def _sequence(topic_id: str, row: Row | None) -> int:
    if row is None:
        raise LookupError(topic_id)
    return int(row["sequence"])


def _attributes(message: NewMessage) -> dict[str, str]:
    named = {"id": message.id, "source": message.source, "type": message.type, "subject": message.subject}
    given = {name: value for name, value in named.items() if value is not None}
    if message.time is not None:
        given["time"] = rfc3339(message.time)
    return given | dict(message.extensions)


def _message(row: Row) -> MessageRow:
    values: dict[str, Any] = dict(row)
    values["payload"] = row["payload"].encode()
    values["headers"] = json.loads(row["headers"]) if row["headers"] else {}
    values["attributes"] = json.loads(row["attributes"]) if row["attributes"] else {}
    return MessageRow(**values)
