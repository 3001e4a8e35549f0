"""Publishing: what is answered is committed, in an order without gaps, and what says the same twice is one message."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.events.bus.publish import TopicPublisher
from nova.service import ServiceGroup
from nova.store import messages
from nova.store.db import Database
from nova.work.notices import Notices
from tests.events.bus.topics import message, topic

pytestmark = pytest.mark.anyio
CALLER = "key:test"


@pytest.fixture
async def publisher(database: Database) -> AsyncIterator[TopicPublisher]:
    async with ServiceGroup() as services:
        notices = await services.start(Notices(database))
        yield await services.start(TopicPublisher(database, notices))


async def test_sequences_have_no_gaps_however_many_publish_at_once(
    database: Database, publisher: TopicPublisher
) -> None:
    """Two processes, two topics, some messages twice: each topic counts 1, 2, 3 … in the order of visibility."""
    first, second = await topic(database, "a"), await topic(database, "b")
    other = TopicPublisher(database, Notices(database))
    seen: list[int] = []

    async def watch() -> None:
        while len(seen) < 300:
            found = await messages.read_after(database, first, seen[-1] if seen else 0, 500)
            seen.extend(row.sequence for row in found)

    async def publish(way: TopicPublisher, name: str, number: int) -> None:
        twice = number % 2 == 0  # the same message by either publisher
        number += 1000 if not twice and way is other else 0
        sent = message(b"%d" % number, dedup_id=str(number) if twice else None)
        (told,) = await way.publish(Scope(), name, [sent], caller=CALLER)
        (kept,) = await messages.by_sequence(database, first if name == "a" else second, [told.sequence or 0])
        assert (kept.payload, kept.id) == (b"%d" % number, told.id)

    watching = asyncio.create_task(watch())
    await asyncio.gather(
        *(publish(way, name, n) for n in range(200) for way in (publisher, other) for name in ("a", "b"))
    )
    await asyncio.wait_for(watching, 20)
    assert seen == list(range(1, 301))
    kept = await messages.read_after(database, second, 0, 500)
    assert sorted(int(row.payload) for row in kept) == [*range(200), *range(1001, 1200, 2)]
    assert [row.sequence for row in kept] == list(range(1, 301))
    await other.close()


async def test_a_batch_is_all_or_nothing_and_answers_in_order(database: Database, publisher: TopicPublisher) -> None:
    topic_id = await topic(database)
    batch = [message(b"1", dedup_id="x"), message(b"2"), message(b"3", dedup_id="x")]
    told = await publisher.publish(Scope(), "orders", batch, caller=CALLER)
    assert [(t.sequence, t.duplicate) for t in told] == [(1, False), (2, False), (1, True)]
    assert told[2].id == told[0].id
    again = await publisher.publish(Scope(), "orders", [message(b"4", dedup_id="x")], caller=CALLER)
    assert (again[0].id, again[0].sequence, again[0].duplicate) == (told[0].id, 1, True)
    with pytest.raises(NovaError) as refused:
        await publisher.publish(Scope(), "orders", [message(b"5"), message(b"6", ordering_key="")], caller=CALLER)
    assert refused.value.code == "validation_failed"
    assert refused.value.errors[0].field == "ordering_key"
    assert [row.payload for row in await messages.read_after(database, topic_id, 0, 10)] == [b"1", b"2"]


async def test_an_unknown_topic_refuses_only_its_own(database: Database, publisher: TopicPublisher) -> None:
    await topic(database)
    outcomes = await asyncio.gather(
        *(publisher.publish(Scope(), name, [message()], caller=CALLER) for name in ("orders", "nothing", "orders")),
        return_exceptions=True,
    )
    assert [o.code if isinstance(o, NovaError) else o[0].sequence for o in outcomes] == [1, "not_found", 2]  # type: ignore[index]


async def test_what_is_published_is_read_as_it_was(database: Database, publisher: TopicPublisher) -> None:
    topic_id = await topic(database)
    sent = message(
        b'{"a":"\\u0000\xc3\xa4"}',
        headers={"x": "ä"},
        ordering_key="k",
        id="e-1",
        source="/shop",
        type="placed",
        extensions={"region": "eu"},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    await publisher.publish(Scope(), "orders", [sent, message(b"2")], caller=CALLER)
    row, plain = await messages.read_after(database, topic_id, 0, 10)
    assert row.payload == sent.payload
    assert row.headers == {"x": "ä"}
    assert row.attributes == {"id": "e-1", "source": "/shop", "type": "placed", "region": "eu"}
    assert (row.ordering_key, row.traceparent, row.published_by) == ("k", sent.traceparent, CALLER)
    assert await messages.by_id(database, topic_id, [plain.id]) == [plain]
    assert await messages.by_sequence(database, topic_id, [1, 7]) == [row]
    assert [m.sequence for m in await messages.read_after(database, topic_id, 0, 10, ordering_key="k")] == [1]
    assert await messages.sequence_at(database, topic_id, row.published_at) == 1
