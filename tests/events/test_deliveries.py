"""Destinations: the outbox, functions and webhooks as receivers, and what happens when they fail."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.errors import FunctionError
from nova.events import silent, webhooks
from nova.events.webhook_secrets import WebhookSecrets
from nova.events.webhooks import WebhookSender
from nova.ids import new_id
from nova.security.egress import client
from nova.store import asyncs
from nova.store.asyncs_admin import AsyncStore, JobFilter
from nova.store.db import Database, Row
from nova.store.jobs import Ended, JobStore, OutboxEvent
from tests.events.bus.topics import topic
from tests.events.support import Calls, failing, function, job, nebula, result
from tests.events.workflows.support import workflow

pytestmark = pytest.mark.anyio
BROKEN = FunctionError("ValueError", "no good")
Reply = tuple[int, dict[str, str]]


class Receiver:
    """An HTTP server that answers as the test says (200 when it says nothing more) and keeps what it got."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.got.append((head[0], headers, body))
        status, extra = self.replies.pop(0) if self.replies else (200, {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def receiver(*replies: Reply) -> AsyncIterator[Receiver]:
    got = Receiver(*replies)
    server = await asyncio.start_server(got.serve, "127.0.0.1", 0)
    got.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield got


async def outbox(database: Database, fits: Callable[[Row], bool]) -> Row:
    """The one event of the outbox, when it fits."""
    async with asyncio.timeout(20):
        while True:
            rows = await database.fetch("SELECT * FROM event_outbox")
            if rows and fits(rows[0]):
                (row,) = rows
                return row
            await asyncio.sleep(0.02)


def ended(row: Row) -> bool:
    return row["finished_at"] is not None


async def at_once(database: Database) -> None:
    """What waits for its next attempt is due now."""
    await database.run("UPDATE work SET run_at = now() WHERE kind = 'delivery'")
    await database.run("SELECT pg_notify('nova_work', '{\"kind\": \"delivery\"}')")


async def test_success_reaches_a_function_as_an_event(database: Database) -> None:
    await function(database, "next")
    await function(database, async_destinations={"on_success": {"type": "function", "target": "next"}})
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with nebula(database) as plane:
        async with database.transaction() as conn:
            first = await asyncs.enqueue(
                conn,
                scope=Scope(),
                function_id=await _id(database, "f"),
                function_name="f",
                qualifier=None,
                payload=b'{"n": 1.0}',
                options=job().options,
                caller="key:ann",
                traceparent=trace,
                source="schedule:nightly",
            )
        row = await outbox(database, ended)
        (second,) = await AsyncStore(database).page(Scope(), JobFilter(function="next"), before=None, limit=9)
        await plane.ended(second["id"])
    assert (row["status"], row["target_type"], row["source"]) == ("delivered", "function", f"async/{first}/0")
    of_first, of_second = plane.calls.seen
    assert (of_first.trigger, of_first.caller) == ("schedule", "schedule:nightly")
    assert (of_second.trigger, of_second.caller, of_second.identity.subject) == ("async", f"async:{first}", "key:ann")
    assert of_second.traceparent == trace
    assert b'"payload":{"n": 1.0}' in of_second.payload
    event = json.loads(of_second.payload)
    assert {name: event[name] for name in ("specversion", "type", "source", "subject", "novatenant")} == {
        "specversion": "1.0",
        "type": "nova.async.succeeded",
        "source": "/functions/f",
        "subject": first,
        "novatenant": "default",
    }
    data = event["data"]
    assert (data["status"], data["output"], data["error"], data["attempts"]) == ("succeeded", {"n": 1.0}, None, 1)
    assert (data["request_id"], data["function"], data["version"]) == (of_first.request_id, "f", 3)


async def test_failure_reaches_a_webhook_signed(database: Database) -> None:
    async with receiver() as hook:
        function_id = await function(
            database,
            async_destinations={
                "on_failure": {"type": "webhook", "target": hook.url},
                "on_success": {"type": "function", "target": "f"},
            },
        )
        async with nebula(database, Calls(failing(BROKEN))) as plane:
            await plane.ended(await plane.accept(b'"\xc3\xbc"', max_attempts=1))
            row = await outbox(database, ended)
    assert (row["status"], row["attempts"]) == ("delivered", 1)
    ((line, headers, body),) = hook.got
    assert line == "POST /hook HTTP/1.1"
    assert (headers["webhook-id"], headers["content-type"]) == (str(row["id"]), "application/cloudevents+json")
    secret = await WebhookSecrets(database).of_id(Scope(), function_id)
    assert secret is not None
    event: Any = Webhook(secret.text).verify(body, headers)
    assert (event["type"], event["data"]["error"]["type"], event["data"]["payload"]) == (
        "nova.async.failed",
        "ValueError",
        "ü",
    )
    assert plane.told == [("f", "dlq"), ("webhook", "delivered")]


async def test_success_is_published_to_a_topic(database: Database) -> None:
    """Once, as the message that the event is: its attributes, and its data as the payload."""
    topic_id = await topic(database, "ended")
    function_id = await function(database, async_destinations={"on_success": {"type": "topic", "target": "ended"}})
    async with nebula(database) as plane:
        job_id = await plane.accept(b'{"n": 1.0}')
        await plane.ended(job_id)
        row = await outbox(database, ended)
    assert (row["status"], str(row["function_id"])) == ("delivered", function_id)
    (message,) = await database.fetch(
        "SELECT id::text AS id, payload::text AS payload, attributes, published_by FROM event_messages"
        " WHERE topic_id = %(topic)s",
        topic=topic_id,
    )
    assert (message["id"], message["published_by"]) == (str(row["id"]), "key:test")
    assert (message["attributes"]["type"], message["attributes"]["subject"]) == ("nova.async.succeeded", job_id)
    assert json.loads(message["payload"])["output"] == {"n": 1.0}
    assert '"payload":{"n": 1.0}' in message["payload"]
    assert plane.told == [("f", "succeeded"), ("topic", "delivered")]


async def test_failure_begins_a_run_of_a_workflow(database: Database) -> None:
    """One run, however often the delivery is tried."""
    await workflow(database, "repair", {"nodes": [{"node_key": "a", "node_type": "pass"}], "edges": []})
    await function(database, async_destinations={"on_failure": {"type": "workflow", "target": "repair"}})
    async with nebula(database, Calls(failing(BROKEN)), start=False) as plane:
        job_id = await plane.accept(max_attempts=1)
        await database.run("UPDATE dag_workflows SET halted = true")
        async with plane.running():
            await plane.ended(job_id)
            row = await outbox(database, lambda row: row["attempts"] == 1)
            assert row["status"] == "pending"  # halted: to be tried again
            await database.run("UPDATE dag_workflows SET halted = false")
            await at_once(database)
            row = await outbox(database, ended)
    assert row["status"] == "delivered"
    (run,) = await database.fetch("SELECT key, caller, input::text AS input FROM dag_runs")
    event = json.loads(run["input"])
    assert (run["key"], run["caller"]) == (str(row["id"]), "key:test")
    assert (event["type"], event["data"]["error"]["type"]) == ("nova.async.failed", "ValueError")


@pytest.mark.parametrize(
    ("kind", "error"), [("topic", "topic 'ghost' does not exist"), ("workflow", "workflow 'ghost' does not exist")]
)
async def test_a_receiver_that_is_not_there_is_a_dead_event(database: Database, kind: str, error: str) -> None:
    await function(database, async_destinations={"on_success": {"type": kind, "target": "ghost"}})
    async with nebula(database) as plane:
        await plane.ended(await plane.accept())
        row = await outbox(database, ended)
    assert (row["status"], row["error"]) == ("dead", error)


async def test_nothing_is_sent_where_nothing_was_asked_for(database: Database) -> None:
    await function(database, async_destinations={"on_failure": {"type": "webhook", "target": "http://127.0.0.1:1/"}})
    async with nebula(database) as plane:
        await plane.ended(await plane.accept())
    assert await database.fetch("SELECT id FROM event_outbox") == []


async def test_a_receiver_that_fails_is_tried_again(database: Database) -> None:
    async with receiver((500, {}), (503, {"retry-after": "3600"})) as hook:
        await function(database, async_destinations={"on_success": {"type": "webhook", "target": hook.url}})
        async with nebula(database) as plane:
            await plane.ended(await plane.accept())
            row = await outbox(database, lambda row: row["attempts"] == 1)
            assert (row["status"], row["error"]) == ("pending", "the receiver answered 500")
            await at_once(database)
            await outbox(database, lambda row: row["attempts"] == 2)
            due = await database.one("SELECT run_at - now() AS wait FROM work WHERE kind = 'delivery'")
            assert due is not None
            assert due["wait"] > timedelta(minutes=50)
            await at_once(database)
            row = await outbox(database, ended)
    assert (row["status"], row["attempts"]) == ("delivered", 3)
    assert len({headers["webhook-id"] for _, headers, _ in hook.got}) == 1


async def test_a_receiver_that_wants_no_more_gets_no_more(database: Database) -> None:
    async with receiver((410, {})) as hook:
        await function(database, async_destinations={"on_success": {"type": "webhook", "target": hook.url}})
        async with nebula(database) as plane:
            await plane.ended(await plane.accept())
            row = await outbox(database, ended)
    assert (row["status"], row["attempts"]) == ("dead", 1)


async def test_a_webhook_dies_after_its_last_attempt(database: Database) -> None:
    await function(database, async_destinations={"on_success": {"type": "webhook", "target": "http://127.0.0.1:1/"}})
    async with nebula(database) as plane:
        await plane.ended(await plane.accept())
        await outbox(database, lambda row: row["attempts"] == 1)
        await database.run("UPDATE work SET attempt = 11 WHERE kind = 'delivery'")
        await at_once(database)
        row = await outbox(database, ended)
    assert (row["status"], row["attempts"]) == ("dead", 12)


async def test_a_receiver_that_never_answers_keeps_no_others_from_their_events(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EV11: one delivery at a time tries whether it is back; the others fail at once, and arrive when it is."""
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(silent, "SLOW_S", 0.4)
    back = asyncio.Event()
    async with receiver() as hook, receiver() as mute:
        serve, tried = mute.serve, 0

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tried
            tried += 1
            if not back.is_set():
                with suppress(TimeoutError):  # every other time it is the other side that has had enough
                    async with asyncio.timeout(0.5 if tried % 2 else 5):
                        await reader.read()
                writer.close()
                return
            await serve(reader, writer)

        mute.serve = hang  # type: ignore[method-assign]
        async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
            await function(database, "mute", async_destinations={"on_success": {"type": "webhook", "target": url}})
            await function(database, "f", async_destinations={"on_success": {"type": "webhook", "target": hook.url}})
            async with nebula(database, workers=50) as plane:
                for _ in range(40):
                    await plane.accept(function="mute")
                async with asyncio.timeout(20):
                    while await database.one("SELECT FROM event_outbox WHERE attempts > 0") is None:
                        await asyncio.sleep(0.02)
                for _ in range(5):
                    await plane.accept()
                async with asyncio.timeout(20):
                    while len(hook.got) < 5:
                        await asyncio.sleep(0.02)
                assert tried < 20, "most were not even sent"
                assert await database.one(
                    "SELECT 1 AS one FROM event_outbox WHERE error ~ 'another event is trying it'"
                )
                back.set()
                async with asyncio.timeout(20):
                    while len({headers["webhook-id"] for _, headers, _ in mute.got}) < 40:
                        await at_once(database)
                        await asyncio.sleep(0.2)


async def test_a_webhook_inside_is_refused_and_dead_at_once(database: Database) -> None:
    """EV11: also where only a redirect leads there."""
    async with (
        receiver() as inside,
        receiver((307, {"location": inside.url.replace("127.0.0.1", "127.0.0.2")})) as hook,
    ):
        await function(database, async_destinations={"on_success": {"type": "webhook", "target": hook.url}})
        async with nebula(database, egress=EgressSettings(allow=["127.0.0.1"])) as plane:
            await plane.ended(await plane.accept())
            row = await outbox(database, ended)
    assert (row["status"], row["attempts"], inside.got) == ("dead", 1, [])
    assert "127.0.0.2" in row["error"]


async def test_a_function_that_is_not_there_is_a_dead_event(database: Database) -> None:
    await function(database, async_destinations={"on_success": {"type": "function", "target": "ghost"}})
    async with nebula(database) as plane:
        await plane.ended(await plane.accept())
        row = await outbox(database, ended)
    assert (row["status"], row["error"]) == ("dead", "function 'ghost' does not exist")


async def test_functions_that_are_each_others_destination_stop(database: Database) -> None:
    """EV6: a chain of jobs ends at the depth limit."""
    await function(database, async_destinations={"on_success": {"type": "function", "target": "f"}})

    async def script(call: CallRequest) -> CallResult:
        return result(call)

    async with nebula(database, Calls(script)) as plane:
        await plane.accept()
        async with asyncio.timeout(30):
            while not await database.fetch("SELECT 1 FROM event_outbox WHERE status = 'dead'"):
                await asyncio.sleep(0.05)
        rows = await database.fetch("SELECT max(depth) AS depth, count(*) AS n FROM async_invocations")
    assert rows == [{"depth": 32, "n": 33}]


async def test_one_end_is_one_event_whoever_writes_it(database: Database) -> None:
    """EV6: the event is part of the transaction that ends the job; a stale worker's is left out with its outcome."""
    await function(database)
    store = JobStore(database)
    async with database.transaction() as conn:
        await asyncs.add(conn, [job()])
    (old,), _ = await store.claim("a", 1, 30)
    await database.run("UPDATE work SET lease_until = now() - interval '1 s'")
    (new,), _ = await store.claim("b", 1, 30)

    async def end(owner: str, fence: int) -> frozenset[str]:
        event = OutboxEvent(new_id(), Scope(), f"async/{old.id}/0", old.function_id, "function", "f", "key:x", 1, b"{}")
        ended = Ended(old.id, fence, "succeeded", 1, b"[]", None, output=b"1", events=(event,))
        return (await store.write(owner, [ended], [])).ids

    assert await end("a", old.fence) == frozenset()
    assert await database.fetch("SELECT id FROM event_outbox") == []
    assert await end("b", new.fence) == {old.id}
    assert await end("b", new.fence) == frozenset()
    assert len(await database.fetch("SELECT id FROM event_outbox")) == 1
    assert len(await database.fetch("SELECT id FROM work")) == 1


@pytest.mark.parametrize(
    ("replies", "error", "requests"),
    [
        ([(302, {"location": "/other"})], None, 2),
        ([(308, {"location": "/x"})] * 5, None, 6),
        ([(308, {"location": "/x"})] * 6, "more than 5 redirects", 6),
        ([(303, {"location": "/done"})], None, 1),
        ([(307, {"location": "ftp://127.0.0.1/"})], "redirected to a 'ftp' address", 1),
        ([(400, {})], "the receiver answered 400", 1),
        ([(204, {})], None, 1),
    ],
)
async def test_what_an_answer_means(replies: list[Reply], error: str | None, requests: int) -> None:
    async with receiver(*replies) as hook, _sender() as sender:
        sent = await sender.send(hook.url, "id", b"{}", "whsec_" + "A" * 44)
    assert (sent.error, len(hook.got)) == (error, requests)
    assert {line.split()[0] for line, _, _ in hook.got} == {"POST"}
    assert {body for _, _, body in hook.got} == {b"{}"}


async def test_a_receiver_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with _sender() as sender:
            url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
            sent = await sender.send(url, "id", b"{}", "whsec_" + "A" * 44)
    assert sent.error == "no answer within 0.2 s"
    assert not sent.final


@asynccontextmanager
async def _sender() -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(client(EgressSettings(allow=["127.0.0.1"]), timeout_s=5), SYSTEM_CLOCK)
    yield sender
    await sender.close()


async def _id(database: Database, name: str) -> str:
    row = await database.one("SELECT id::text AS id FROM functions WHERE name = %(name)s", name=name)
    assert row is not None
    function_id: str = row["id"]
    return function_id
