"""The live tail: complete, in order, resumable."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from nova.errors import NovaError
from nova.execution.tail import Position
from nova.http.sse import Batch, Event
from nova.store.db import Database
from tests.execution.finished import boom, deployed
from tests.execution.observed import Observed, observing
from tests.http.harness import serve

pytestmark = pytest.mark.anyio


@pytest.fixture
async def seen(database: Database, tmp_path: Path) -> AsyncIterator[Observed]:
    async with observing(database, tmp_path) as observed:
        yield observed


def _data(event: Event) -> dict[str, Any]:
    value = json.loads(event.data)
    assert isinstance(value, dict)
    return value


async def _each(batches: AsyncIterator[Batch]) -> AsyncGenerator[Event, None]:
    async for batch in batches:
        for event in batch.events:
            yield event


async def _take(feed: AsyncIterator[Event], lines: int) -> list[Event]:
    """Events until ``lines`` printed lines were among them."""
    taken: list[Event] = []
    async with asyncio.timeout(30):
        while sum(event.event == "line" for event in taken) < lines:
            taken.append(await anext(feed))
    return taken


async def test_ten_thousand_lines_arrive_complete_and_in_order_over_a_reconnect(
    seen: Observed, database: Database
) -> None:
    """GW5: 10,000 lines from 500 calls, read over two connections, are the lines that were printed, in their order."""
    chatty = await deployed(database)
    function_id = UUID(chatty.function_id)

    async def chatter() -> None:
        for call in range(500):
            seen.call(chatty, stdout="".join(f"{call}:{n}\n" for n in range(20)))
            if call % 10 == 0:
                await asyncio.sleep(0.002)

    feed = _each(seen.feed.follow(function_id, Position(0), since=None, q=None, request_id=None))
    talking = asyncio.create_task(chatter())
    async with aclosing(feed):
        first = await _take(feed, 4321)
    assert first[-1].id is not None
    again = _each(seen.feed.follow(function_id, Position.parse(first[-1].id), since=None, q=None, request_id=None))
    async with aclosing(again):
        rest = await _take(again, 10_000 - 4321)
    await talking
    texts = [_data(event)["text"] for event in first + rest if event.event == "line"]
    assert texts == [f"{call}:{n}" for call in range(500) for n in range(20)]


async def test_a_call_s_lines_come_before_its_end(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    feed = _each(seen.feed.follow(UUID(hello.function_id), Position(0), since=None, q=None, request_id=None))
    call = seen.call(hello, stdout="a\nb", stderr="oops\r\n", error=boom(), cold_start=True)
    async with aclosing(feed), asyncio.timeout(10):
        events = [await anext(feed) for _ in range(4)]
    assert [(e.event, _data(e).get("stream"), _data(e).get("text")) for e in events[:3]] == [
        ("line", "stdout", "a"),
        ("line", "stdout", "b"),
        ("line", "stderr", "oops"),
    ]
    end = _data(events[3])
    assert events[3].event == "call"
    assert end["request_id"] == call.request_id
    assert (end["status"], end["cold_start"], end["duration_ms"]) == ("error", True, 1.5)
    assert end["error"] == {"type": "ValueError", "message": "bad date", "stack": ["main.py:12 in handler"]}


async def test_the_stream_begins_now_unless_told_otherwise(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    before = seen.call(hello, stdout="before\n")
    await seen.logs.settle()
    [row] = await database.fetch("SELECT created_at FROM invocation_logs")
    feed = _each(seen.feed.follow(UUID(hello.function_id), None, since=None, q=None, request_id=None))
    waiting = asyncio.ensure_future(anext(feed))
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    seen.call(hello, stdout="after\n")
    assert _data(await asyncio.wait_for(waiting, 10))["text"] == "after"
    await feed.aclose()
    since = _each(seen.feed.follow(UUID(hello.function_id), None, since=row["created_at"], q=None, request_id=None))
    async with aclosing(since), asyncio.timeout(10):
        assert _data(await anext(since))["request_id"] == before.request_id


async def test_a_search_shows_the_matching_lines_only(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    feed = _each(seen.feed.follow(UUID(hello.function_id), Position(0), since=None, q="find", request_id=None))
    seen.call(hello, stdout="no\nfind me\n")
    seen.call(hello, stdout="no\n", stderr="you find this\n")
    async with aclosing(feed):
        events = await _take(feed, 2)
    assert [_data(event)["text"] for event in events] == ["find me", "you find this"]


async def test_one_request_can_be_followed(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    seen.call(hello, stdout="not this\n")
    wanted = seen.call(hello, stdout="this\n")
    feed = _each(
        seen.feed.follow(UUID(hello.function_id), Position(0), since=None, q=None, request_id=UUID(wanted.request_id))
    )
    async with aclosing(feed):
        assert [_data(event)["text"] for event in await _take(feed, 1)] == ["this"]


async def test_another_function_s_calls_never_show_up(seen: Observed, database: Database) -> None:
    hello, other = await deployed(database), await deployed(database, "other")
    feed = _each(seen.feed.follow(UUID(hello.function_id), Position(0), since=None, q=None, request_id=None))
    seen.call(other, stdout="theirs\n")
    seen.call(hello, stdout="ours\n")
    async with aclosing(feed):
        assert [_data(event)["text"] for event in await _take(feed, 1)] == ["ours"]


async def test_records_that_come_late_are_shown_too(seen: Observed, database: Database) -> None:
    """GW5: a record replayed after an outage has an old time and still reaches whoever is watching."""
    hello = await deployed(database)
    feed = _each(seen.feed.follow(UUID(hello.function_id), Position(0), since=None, q=None, request_id=None))
    async with aclosing(feed):
        seen.call(hello, stdout="first\n")
        await _take(feed, 1)
        seen.call(hello, stdout="late\n")
        await seen.logs.settle()
        await database.run("UPDATE invocation_logs SET created_at = now() - interval '1 hour' WHERE stdout = 'late\n'")
        assert [_data(e)["text"] for e in await _take(feed, 1) if e.event == "line"] == ["late"]


async def test_over_http_with_last_event_id(seen: Observed, database: Database) -> None:
    """GW5: the id of the last event seen is all that a client needs to go on."""
    hello = await deployed(database)
    seen.call(hello, stdout="one\ntwo\nthree\n")
    await seen.logs.settle()
    async with (
        serve(seen.api.app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        ids = await _read_ids(client, {"since": "2020-01-01T00:00:00Z"}, {}, 2)
        assert ids[0].endswith(".1")
        rest = await _read_ids(client, {}, {"Last-Event-ID": ids[1]}, 2)
    assert rest == [ids[0].replace(".1", ".3"), ids[0].removesuffix(".1")]


async def _read_ids(client: httpx.AsyncClient, query: dict[str, str], headers: dict[str, str], count: int) -> list[str]:
    ids: list[str] = []
    async with client.stream("GET", "/functions/hello/logs/stream", params=query, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                ids.append(line.removeprefix("id: "))
            if len(ids) == count:
                break
    return ids


@pytest.mark.parametrize("text", ["", "x", "1.", "1.x", "-1", "9" * 19])
def test_a_made_up_event_id_is_refused(text: str) -> None:
    with pytest.raises(NovaError, match="validation_failed"):
        Position.parse(text)
