"""What the frame does with the events of a source: batches, order, back-pressure, retries, dead letters; and who runs what."""

import asyncio
from typing import Any

import pytest

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.errors import FunctionError, NovaError
from nova.events.triggers.base import Verdict
from nova.ids import new_id
from nova.store.db import Database
from nova.work.queue import LeaseLost
from tests.events.support import Calls, failing, function, result, tenant
from tests.events.triggers.support import event, nebula, over_tcp, planed, settings_for, term, until

pytestmark = pytest.mark.anyio
BROKEN = FunctionError("ValueError", "no", ("here",))


class Gate:
    """Calls wait until it is opened; each says when it began."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.began = 0
        self.at_once = self.most = 0

    async def __call__(self, call: CallRequest) -> CallResult:
        self.began += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self.open.wait()
        self.at_once -= 1
        return result(call)


async def test_a_function_gets_an_envelope_in_the_name_of_the_maker(database: Database) -> None:
    async with term(database, qualifier="blue") as running:
        verdict = await running.sink.deliver(event(7, subject="s", ordering_key="k", extensions={"traceparent": "tp"}))
        assert verdict is Verdict.SUCCEEDED
    (call,) = running.calls.seen
    assert (call.function, call.qualifier, call.trigger, call.caller) == ("f", "blue", "trigger", "trigger:t")
    assert (call.identity.subject, set(call.identity.tenants), call.traceparent) == ("key:maker", {"default"}, "tp")
    (envelope,) = running.inputs
    del envelope["time"]
    assert envelope == {
        "specversion": "1.0",
        "id": "e7",
        "source": "/triggers/t",
        "type": "nova.trigger.redis",
        "subject": "s",
        "datacontenttype": "application/json",
        "traceparent": "tp",
        "novatenant": "default",
        "novatrigger": "t",
        "novaattempt": 1,
        "partitionkey": "k",
        "data": 7,
    }
    report = running.progress.take()
    assert (report.received, report.processed, report.failed) == (1, 1, 0)
    assert running.counted.events == [("redis_stream", "succeeded")]


async def test_no_more_calls_are_under_way_than_allowed(database: Database) -> None:
    gate = Gate()
    async with term(database, Calls(gate), max_inflight=3) as running, asyncio.TaskGroup() as group:
        for n in range(9):
            group.create_task(running.sink.deliver(event(n)))
        await until(lambda: gate.began == 3)
        await asyncio.sleep(0.02)
        assert gate.began == 3
        gate.open.set()
    assert (gate.began, gate.most) == (9, 3)


async def test_a_batch_is_one_call_when_it_is_full_or_its_window_ends(database: Database) -> None:
    async with term(database, batch_size=3, batch_window_ms=150) as running:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(running.sink.deliver(event(n))) for n in range(5)]
        assert {task.result() for task in tasks} == {Verdict.SUCCEEDED}
        assert [[one["data"] for one in batch] for batch in running.inputs] == [[0, 1, 2], [3, 4]]
        assert running.progress.processed == 5


async def test_events_of_one_key_come_one_at_a_time_in_order_and_others_pass(database: Database) -> None:
    """A failed attempt keeps its place; another key does not wait for it."""
    seen: list[tuple[str, int]] = []
    failures = {2: 2}

    async def script(call: CallRequest) -> CallResult:
        sent: dict[str, Any] = payload.decode(call.payload)
        seen.append((sent["partitionkey"], sent["data"]))
        await asyncio.sleep(0.001)
        if failures.get(sent["data"], 0):
            failures[sent["data"]] -= 1
            return result(call, error=BROKEN)
        return result(call)

    async with term(database, Calls(script), max_inflight=4) as running, asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(running.sink.deliver(event(n, ordering_key="even" if n % 2 == 0 else "odd")))
            await asyncio.sleep(0)
    assert [n for key, n in seen if key == "even"] == [0, 2, 2, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [n for key, n in seen if key == "odd"] == list(range(1, 20, 2))


async def test_what_the_function_does_not_take_is_tried_again_then_dead_lettered(database: Database) -> None:
    """EV18: poison ends in the dead-letter queue as a job that can be retried, after max_attempts executions."""
    function_id = await function(database)
    calls = Calls(failing(*[BROKEN] * 2, *[BROKEN] * 3))
    async with term(database, calls, max_attempts=2, qualifier="live") as running:
        assert await running.sink.deliver(event(1)) is Verdict.DEAD_LETTERED
        assert len(calls.seen) == 2
        assert [call.attempt for call in calls.seen] == [1, 2]
    (letter,) = await database.fetch("SELECT * FROM async_invocations")
    assert (letter["status"], str(letter["function_id"]), letter["qualifier"]) == ("dlq", function_id, "live")
    assert (letter["source"], letter["caller"], letter["attempt"]) == ("trigger:t", "key:maker", 2)
    assert letter["error"] == {"type": "ValueError", "message": "no", "stack": ["here"]}
    assert [one["no"] for one in letter["attempts"]] == [1, 2]
    assert letter["payload"]["data"] == 1
    assert running.counted.events == [("redis_stream", "retried"), ("redis_stream", "dead_lettered")]
    assert "no" in (running.progress.last_error or "")
    assert running.progress.failed == 1


async def test_dropping_and_retrying_without_end(database: Database) -> None:
    async with term(database, Calls(failing(*[BROKEN] * 2)), on_error="drop", max_attempts=2) as running:
        assert await running.sink.deliver(event(1)) is Verdict.DROPPED
    async with term(database, Calls(failing(*[BROKEN] * 9)), on_error="retry", max_attempts=2) as running:
        assert await running.sink.deliver(event(1)) is Verdict.SUCCEEDED
        assert len(running.calls.seen) == 10
    assert await database.fetch("SELECT 1 FROM async_invocations") == []


async def test_a_target_that_is_busy_or_not_there_is_waited_for(database: Database) -> None:
    """Such refusals are no attempts; what would be refused the same way again ends at once."""
    waits = failing(NovaError("not_found", "gone"), *[NovaError("queue_full", "busy", retry_after_s=2)] * 4)
    async with term(database, Calls(waits), max_attempts=1, on_error="drop") as running:
        assert await running.sink.deliver(event(1)) is Verdict.SUCCEEDED
        assert len(running.calls.seen) == 6
    hopeless = failing(*[NovaError("payload_too_large", "too much")] * 3)
    async with term(database, Calls(hopeless), on_error="drop") as running:
        assert await running.sink.deliver(event(1)) is Verdict.DROPPED
        assert len(running.calls.seen) == 1


async def test_a_dead_letter_waits_for_its_function_and_needs_the_duty(database: Database) -> None:
    """Nothing is lost while the function is away, and nothing written by a process that is not in charge any more."""
    async with term(database, Calls(failing(BROKEN)), max_attempts=1) as running:
        running.fence.lost = True
        with pytest.raises(LeaseLost):
            await running.sink.deliver(event(1))
        with pytest.raises(LeaseLost):
            await running.sink.save(b"x")
    async with term(database, Calls(failing(BROKEN)), max_attempts=1) as running:
        waiting = asyncio.create_task(running.sink.deliver(event(1)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await function(database)
        assert await asyncio.wait_for(waiting, 20) is Verdict.DEAD_LETTERED


async def test_filters_and_repetitions_do_not_reach_the_function(database: Database) -> None:
    wanted = [{"prefix": {"subject": "eu."}}]
    async with term(database, filters=wanted) as running:
        sink = running.sink
        assert await sink.deliver(event(1, subject="us.a")) is Verdict.FILTERED
        assert await sink.deliver(event(2, subject="eu.a")) is Verdict.SUCCEEDED
        assert await sink.deliver(event(2, subject="eu.a", redelivered=True)) is Verdict.DUPLICATE
        assert await sink.deliver(event(3, subject="eu.a", redelivered=True)) is Verdict.SUCCEEDED
        assert [sent["data"] for sent in running.inputs] == [2, 3]


async def test_topics_get_messages_that_are_told_apart_by_their_ids(database: Database) -> None:
    async with term(database, target_type="topic", target="orders.eu", on_error="retry", batch_size=2) as running:
        running.topics.refuse = NovaError("not_found", "no such topic")
        both = asyncio.gather(*(running.sink.deliver(event(n, ordering_key=f"k{n}")) for n in range(2)))
        await asyncio.sleep(0.02)
        running.topics.refuse = None
        assert await both == [Verdict.SUCCEEDED] * 2
        (_, topic, first), (_, _, second) = running.topics.published
        assert (topic, first.payload, first.ordering_key, first.type) == ("orders.eu", b"0", "k0", "nova.trigger.redis")
        assert {first.dedup_id, second.dedup_id} == {f"{running.progress.trigger_id}/e{n}" for n in range(2)}


async def test_workflows_run_once_for_an_event(database: Database) -> None:
    async with term(database, target_type="workflow", target="w", on_error="retry") as running:
        for _ in range(2):
            await running.sink.deliver(event(4))
        ((key, (workflow, sent, caller)),) = running.workflows.started.items()
        assert (key, workflow, caller) == (f"{running.progress.trigger_id}/e4", "w", "key:maker")
        assert (sent["data"], sent["novatrigger"]) == (4, "t")


async def test_a_trigger_runs_from_its_creation_to_its_deletion(database: Database, pg_dsn: str) -> None:
    """EV18: changes act without a restart; pause holds, resume goes on; counts and state are shown."""
    calls = Calls()
    async with over_tcp(pg_dsn) as tcp, planed(database) as plane, nebula(database, calls, settings_for()) as running:
        made = await plane.create(type="postgres", config={"dsn": tcp.dsn, "channel": "first"})
        await plane.running(made)

        async def told(channel: str) -> None:
            """Said again until it is heard: a trigger that runs may be about to begin anew with its latest change."""
            word = new_id()

            async def heard() -> bool:
                said = f'{{"n": "{word}"}}'
                await database.run("SELECT pg_notify(%(channel)s, %(said)s)", channel=channel, said=said)
                await asyncio.sleep(0.1)
                return any(word.encode() in call.payload for call in calls.seen)

            await until(heard)

        await told("first")
        changed = await plane.patch(made, config={"channel": "second"}, target="g")
        assert changed["config"] == {"dsn": made["config"]["dsn"], "channel": "second"}
        await plane.running(made)
        await told("second")
        assert list(dict.fromkeys(call.function for call in calls.seen)) == ["f", "g"]

        tcp.cut()
        heard = len(calls.seen)
        await until(lambda: _notified(database, calls, heard, "second"))
        await plane.running(made)

        assert (await plane.post(f"/triggers/{made['id']}/pause"))["state"] == "stopped"
        await until(lambda: not running.triggers._running)
        await plane.post(f"/triggers/{made['id']}/resume")
        await plane.running(made)
        await told("second")

        async def counted() -> bool:
            status = await plane.status(made)
            counts = status["received"], status["processed"], status["failed"]
            return bool(counts == (len(calls.seen), len(calls.seen), 0))

        await until(counted)
        status = await plane.status(made)
        assert status["node"] == "here"
        assert status["last_event_at"] is not None
        assert (await plane.client.delete(f"/triggers/{made['id']}")).status_code == 204
        await until(lambda: not running.triggers._running)
        await until(lambda: _given_up(database))


async def test_a_source_that_cannot_be_reached_is_an_error_until_it_can(database: Database, pg_dsn: str) -> None:
    async with over_tcp(pg_dsn) as tcp:
        dead = tcp.dsn.replace(str(tcp.port), "1")
        async with planed(database) as plane, nebula(database, Calls(), settings_for()):
            made = await plane.create(type="postgres", config={"dsn": dead, "channel": "c"})
            await plane.state(made, "error")
            error = (await plane.status(made))["last_error"]
            assert "cannot connect" in error
            assert "hidden" not in error
            tested = await plane.post(f"/triggers/{made['id']}/test")
            assert (tested["ok"], "hidden" in tested["error"]) == (False, False)
            await plane.patch(made, config={"dsn": tcp.dsn})
            await plane.running(made)
            assert await plane.post(f"/triggers/{made['id']}/test") == {"ok": True, "error": None}
            assert (await plane.get(f"/triggers/{made['id']}"))["config"]["dsn"].endswith(f"{tcp.port}/{_name(pg_dsn)}")


async def test_one_process_runs_it_and_another_takes_over(database: Database, pg_dsn: str) -> None:
    """It also stops with its tenant, and goes on with it."""
    scope = await tenant(database, "acme")
    east, west = Calls(), Calls()
    async with over_tcp(pg_dsn) as tcp, planed(database) as plane:
        await plane.api.guards.directory.changed("acme")
        plane.client.headers["X-Nova-Tenant"] = "acme"
        async with nebula(database, west, settings_for(), "west"):
            async with nebula(database, east, settings_for(), "east"):
                made = await plane.create(type="postgres", config={"dsn": tcp.dsn, "channel": "c"})
                await plane.running(made)
                first = (await plane.status(made))["node"]
                await database.run("SELECT pg_notify('c', '1')")
                await until(lambda: len(east.seen) + len(west.seen) == 1)
                assert (east.seen or west.seen)[0].scope == scope == Scope("acme")
                assert bool(east.seen) == (first == "east")
            await until(lambda: _notified(database, west, len(west.seen)))
            assert (await plane.status(made))["node"] == "west"
            await database.run("UPDATE tenants SET status = 'suspended' WHERE id = 'acme'")
            await database.run("SELECT pg_notify('nova_tenants', 'acme')")
            await until(lambda: _given_up(database))


async def _given_up(database: Database) -> bool:
    """Nobody holds a trigger."""
    return not await database.fetch("SELECT 1 FROM leases WHERE duty LIKE 'trigger/%%' AND until > now()")


async def _notified(database: Database, calls: Calls, before: int, channel: str = "c") -> bool:
    """A notification that nobody hears is gone, so another is sent."""
    await database.run("SELECT pg_notify(%(channel)s, '2')", channel=channel)
    await asyncio.sleep(0.1)
    return len(calls.seen) > before


def _name(dsn: str) -> str:
    return dsn.rpartition("dbname=")[2].split()[0] if "dbname=" in dsn else dsn.rpartition("/")[2]
