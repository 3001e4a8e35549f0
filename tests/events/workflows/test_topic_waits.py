"""Nodes that wait for messages of topics: which message is theirs, and that none is lost or used twice."""

import asyncio

import pytest

from nova.events.workflows import topic_waits
from nova.store.db import Database
from nova.store.workflow_waits import page
from tests.events.bus.topics import topic
from tests.events.workflows.support import SCOPE, Failed, Nebula, chain, function, nebula, node, publish, workflow

pytestmark = pytest.mark.anyio
MINE = [{"exact": {"/order": "$.input.order"}}, {"not": {"exact": {"/state": "$.input.ignore"}}}]


async def held(n: Nebula) -> None:
    """Nobody waits any more."""
    async with asyncio.timeout(20):
        while await page(n.db, after=None, limit=1):
            await asyncio.sleep(0.01)


async def test_messages_count_from_the_start_of_the_run_each_for_one_node(database: Database) -> None:
    await topic(database, "payments")
    waits = {"topic": "payments", "filters": MINE}
    story = chain(function("begin", "hold"), node("first", "wait_event", **waits), node("then", "wait_event", **waits))
    story["output"] = ["$.nodes.first.output.data", "$.nodes.then.output.data", "$.nodes.first.output.sequence"]
    await workflow(database, "w", story)
    go = asyncio.Event()
    began = asyncio.Event()

    async def hold(given: object) -> object:
        began.set()
        await go.wait()
        return given

    async with nebula(database, {"hold": hold}) as n:
        await publish(n, "payments", {"order": 7, "no": "before the run"})
        run_id = await n.start("w", {"order": 7, "ignore": "draft"})
        await began.wait()
        await publish(n, "payments", {"order": 8, "no": 0}, {"order": 7, "no": 1, "state": "draft"})
        await publish(n, "payments", {"order": 7, "no": 2, "state": "paid"})
        go.set()
        await n.waits(run_id, "then")
        assert (await n.run(run_id))["status"] == "running"
        await publish(n, "payments", {"no": 3}, {"order": "7", "no": 4})
        row = await n.ended(run_id)
        first = {"order": 7, "no": 2, "state": "paid"}
        assert (row["status"], row["output"]) == ("succeeded", [first, {"order": "7", "no": 4}, "4"])
        event = (await n.nodes(run_id))["first"]["output"]
        assert (event["type"], event["source"], event["novatopic"]) == (
            "nova.topic.message",
            "/topics/payments",
            "payments",
        )
        await held(n)


async def test_a_wait_of_a_topic_ends_by_its_time_and_a_late_message_changes_nothing(database: Database) -> None:
    await topic(database, "news")
    story = chain(
        node("news", "wait_event", topic="news", timeout_s=0.2, catch=[{"on": ["Nova.Timeout"], "goto": "late"}]),
        node("never", "pass"),
    )
    story["nodes"] += [node("late", "pass", value="late"), node("end", "wait_event", key="end")]
    story["edges"].append({"from": "late", "to": "end"})
    await workflow(database, "w", story)
    async with nebula(database) as n:
        run_id = await n.start("w")
        await n.waits(run_id, "end")
        await publish(n, "news", {"any": 1})
        await held(n)
        await n.runs.send(SCOPE, run_id, "end", b"1", by="key:test")
        row = await n.ended(run_id)
        assert row["status"] == "succeeded"
        states = {key: one["status"] for key, one in (await n.nodes(run_id)).items()}
        assert states == {"news": "failed", "never": "skipped", "late": "succeeded", "end": "succeeded"}


async def test_a_run_that_is_done_again_gets_its_message_again(database: Database) -> None:
    await topic(database, "news")
    broken = [True]

    def then(given: object) -> object:
        if broken[0]:
            raise Failed("not yet")
        return given

    story = chain(node("news", "wait_event", topic="news"), function("then", "then"), output="$.nodes.then.output.data")
    await workflow(database, "w", story)
    async with nebula(database, {"then": then}) as n:
        run_id = await n.start("w")
        await publish(n, "news", {"text": 1}, {"text": 2})
        assert (await n.ended(run_id))["status"] == "failed"
        broken[0] = False
        await n.runs.retry(SCOPE, run_id, "news", by="key:test")
        row = await n.ended(run_id)
        assert (row["status"], row["output"]) == ("succeeded", {"text": 1})


async def test_a_topic_that_is_deleted_fails_who_waits_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_waits, "LOOK_S", 0.2)
    topic_id = await topic(database, "news")
    await workflow(database, "w", chain(node("news", "wait_event", topic="news", filters=[{"prefix": {"type": "a"}}])))
    async with nebula(database) as n:
        run_id = await n.start("w")
        await n.waits(run_id, "news")
        await database.run("DELETE FROM event_topics WHERE id = %(id)s::uuid", id=topic_id)
        row = await n.ended(run_id)
        assert (row["status"], row["error"]["type"]) == ("failed", "Nova.NotFound")
        assert "'news'" in row["error"]["message"]


async def test_filters_that_are_none_for_these_values_fail_the_node(database: Database) -> None:
    await topic(database, "news")
    await workflow(
        database, "w", chain(node("news", "wait_event", topic="news", filters=[{"exact": {"/a": "$.input.a"}}]))
    )
    async with nebula(database) as n:
        for given in ({"a": {"b": 1}}, {"a": ""}, {}):
            row = await n.ended(await n.start("w", given))
            assert (row["status"], row["error"]["type"]) == ("failed", "Nova.MappingFailed")
