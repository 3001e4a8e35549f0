"""Runs of workflows against a real database, with scripted functions: what each kind of node does, and what runs survive."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nova.errors import NovaError
from nova.store.db import Database
from tests.events.workflows.support import SCOPE, Failed, Functions, chain, failing, function, nebula, node, workflow

pytestmark = pytest.mark.anyio
NEVER = {"path": "$.input.never", "op": "exists"}


async def test_mappings_conditions_choices_and_joins(database: Database) -> None:
    """EV13: mapping and conditions. The joins after a choice know which branch was not taken."""
    definition = {
        "nodes": [
            function("price", input_mapping={"sum": "$.input.items[*].price", "note": "$$.input", "fix": 1}),
            node(
                "size",
                "choice",
                branches=[
                    {"when": {"path": "$.nodes.price.output.sum[0]", "op": "gt", "value": 100}, "goto": "big"},
                    {"when": {"any": [NEVER, {"path": "$.input.vip", "op": "eq", "value": True}]}, "goto": "vip"},
                ],
                default="small",
            ),
            function("big"),
            function("vip", "vip", output_mapping={"was": "$.output.answer", "run": "$.run.workflow"}),
            function("small"),
            node("after", "pass"),
            node("never", "pass", when=NEVER),
            node("behind_never", "pass"),
        ],
        "edges": [
            {"from": "price", "to": "size"},
            *({"from": key, "to": "after"} for key in ("big", "vip", "small")),
            {"from": "price", "to": "never"},
            {"from": "never", "to": "behind_never"},
            {"from": "price", "to": "behind_never", "when": NEVER},
        ],
        "output": {"after": "$.nodes.after.output", "skipped": "$.nodes.never.output", "n": [1, "$.input.vip"]},
    }
    await workflow(database, "w", definition)
    async with nebula(database, {"vip": lambda _given: {"answer": 42}}) as n:
        run_id = await n.start("w", {"items": [{"price": 7}, {"price": 8}], "vip": True})
        row = await n.ended(run_id)
        assert row["output"] == {
            "after": {"vip": {"was": 42, "run": "w"}},
            "skipped": None,
            "n": [1, True],
        }
        assert n.functions.inputs("echo") == [{"sum": [7, 8], "note": "$.input", "fix": 1}]
        states = {key: row["status"] for key, row in (await n.nodes(run_id)).items()}
        assert states == {
            "price": "succeeded",
            "size": "succeeded",
            "big": "skipped",
            "vip": "succeeded",
            "small": "skipped",
            "after": "succeeded",
            "never": "skipped",
            "behind_never": "skipped",
        }
        assert ("w", "succeeded") in n.told


async def test_a_map_keeps_the_order_and_its_bounds(database: Database) -> None:
    running, most = 0, 0

    async def slow(given: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.03 / (1 + given["n"] % 3))
        running -= 1
        if given["n"] == 4:
            raise Failed("four")
        return {"n": given["n"] * 10, "index": given["at"]}

    each = {
        "node_type": "function",
        "function_name": "slow",
        "input_mapping": {"n": "$.item", "at": "$.index"},
        "output_mapping": "$.output.n",
    }
    mapped = node("m", "map", items="$.input", do=each, max_concurrency=3, tolerated_failure_pct=20)
    await workflow(database, "w", chain(mapped, output="$.nodes.m.output"))
    batched = {"node_type": "function", "function_name": "double"}
    await workflow(database, "b", chain(node("m", "map", items="$.input", do=batched, batch_size=4)))
    sub = {"node_type": "sub_workflow", "workflow_name": "child", "input_mapping": {"i": "$.item"}}
    await workflow(database, "s", chain(node("m", "map", items=[1, 2, 3], do=sub)))
    await workflow(database, "child", chain(function("c"), output="$.nodes.c.output.i"))
    functions = Functions({"slow": slow, "double": lambda given: [2 * one for one in given]})
    async with nebula(database, functions) as n:
        assert await n.result("w", list(range(8))) == [0, 10, 20, 30, None, 50, 60, 70]
        assert most == 3
        assert await n.result("w", []) == []
        row = await n.ended(await n.start("w", [4, 0, 0]))
        assert (row["status"], row["error"]["message"], row["error"]["node_key"]) == ("failed", "four", "m[0]")
        assert await n.result("b", list(range(10))) == {"m": [2 * one for one in range(10)]}
        assert n.functions.inputs("double")[0] == [0, 1, 2, 3]
        assert await n.result("s") == {"m": [1, 2, 3]}
        wrong = await n.ended(await n.start("w", {"no": "list"}))
        assert wrong["error"]["type"] == "Nova.MappingFailed"


async def test_limits_are_named(database: Database) -> None:
    """Too many items, too large an input, too deep a nest."""
    each = {"node_type": "function", "function_name": "echo"}
    await workflow(database, "items", chain(node("m", "map", items="$.input", do=each)))
    big = node("p", "pass", value=["$.input", "$.input"])
    await workflow(database, "big", chain(big, function("f")))
    await workflow(database, "deep", chain(node("s", "sub_workflow", workflow_name="deep")))
    async with nebula(database, max_items=100, max_depth=3) as n:
        items = await n.ended(await n.start("items", [0] * 101))
        assert "limits.map_items" in items["error"]["message"]
        large = await n.ended(await n.start("big", "x" * 600_000))
        assert (large["error"]["type"], large["error"]["node_key"]) == ("Nova.PayloadTooLarge", "f")
        with pytest.raises(NovaError) as refused:
            await n.start("big", "x" * (1 << 20))
        assert refused.value.code == "payload_too_large"
        deep = await n.ended(await n.start("deep"))
        assert "workflows.max_depth" in deep["error"]["message"]
        rows = await database.fetch("SELECT depth FROM dag_runs WHERE workflow_name = 'deep' ORDER BY depth")
        assert [row["depth"] for row in rows] == [0, 1, 2, 3]


async def test_parallel_branches_and_how_many_must_succeed(database: Database) -> None:
    async def late(_given: Any) -> Any:
        await asyncio.sleep(30)

    def parallel(complete: Any, *names: str) -> Any:
        branches = [chain(function("a", name), node("b", "pass"), output="$.nodes.b.output") for name in names]
        return chain(node("p", "parallel", branches=branches, complete=complete), output="$.nodes.p.output")

    await workflow(database, "all", parallel("all", "one", "two"))
    await workflow(database, "any", parallel("any", "late", "two", "bad"))
    await workflow(database, "enough", parallel(2, "one", "bad", "two", "late"))
    await workflow(database, "short", parallel(2, "one", "bad", "bad"))
    bad = failing(10**6)
    functions = Functions({"one": lambda _: 1, "two": lambda _: 2, "bad": bad, "late": late})
    async with nebula(database, functions) as n:
        assert await n.result("all") == [1, 2]
        run_id = await n.start("any")
        assert (await n.ended(run_id))["output"] == [None, 2, None]
        nodes = await n.nodes(run_id)
        assert (nodes["p/0/a"]["status"], nodes["p/0/b"]["status"]) == ("cancelled", "skipped")
        assert await n.result("enough") == [1, None, 2, None]
        short = await n.ended(await n.start("short"))
        assert (short["status"], short["error"]["node_key"]) == ("failed", "p/1/a")


async def test_attempts_wait_and_errors_are_caught(database: Database) -> None:
    """EV13: retry delay and catch. The first pause is about the base, the next about double."""
    policy = {"max_attempts": 3, "base_ms": 60, "on": ["ValueError"]}
    await workflow(database, "retry", chain(function("f", "flaky", retry_policy=policy), output="$.nodes.f.output"))
    caught = chain(
        function(
            "f",
            "bad",
            retry_policy=policy,
            catch=[{"on": ["KeyError"], "goto": "k"}, {"on": ["Value*"], "goto": "v"}],
        ),
        node("on", "pass"),
    )
    caught["nodes"] += [node("k", "pass"), node("v", "pass", value={"why": "$.error.message", "input": "$.input"})]
    await workflow(database, "caught", caught)
    going = chain(function("f", "bad", continue_on_error=True), node("on", "pass", value="$.nodes.f.error.type"))
    await workflow(database, "going", going)
    await workflow(database, "other", chain(function("f", "typed", retry_policy=policy)))

    def typed(_given: Any) -> Any:
        raise Failed("key", "KeyError")

    functions = Functions({"flaky": failing(2), "bad": failing(10**6), "typed": typed})
    async with nebula(database, functions) as n:
        run_id = await n.start("retry")
        assert (await n.ended(run_id))["output"] == "well"
        tried = await database.fetch(
            "SELECT attempt, started_at, error FROM dag_node_attempts WHERE run_id = %(id)s ORDER BY attempt", id=run_id
        )
        assert [(row["attempt"], row["error"] and row["error"]["type"]) for row in tried] == [
            (1, "ValueError"),
            (2, "ValueError"),
            (3, None),
        ]
        first, second = (tried[i + 1]["started_at"] - tried[i]["started_at"] for i in (0, 1))
        assert first >= timedelta(milliseconds=45)
        assert second >= timedelta(milliseconds=90)
        assert await n.result("caught", 7) == {"v": {"why": f"{10**6 - 3} left", "input": 7}}
        assert await n.result("going") == {"on": "ValueError"}
        other = await n.ended(await n.start("other"))
        assert (other["error"]["type"], len(n.functions.inputs("typed"))) == ("KeyError", 1)


async def test_what_was_done_is_undone_in_reverse(database: Database) -> None:
    def step(key: str, name: str, **more: Any) -> Any:
        return function(key, name, compensate={"function_name": f"undo_{name}"}, **more)

    saga = chain(step("book", "book"), step("pay", "pay"), function("ship", "ship"), node("mail", "pass"))
    await workflow(database, "saga", saga)
    undo_pay = failing(1)
    functions = Functions({"ship": failing(10**6), "book": lambda _: "B1", "pay": lambda _: "P1", "undo_pay": undo_pay})
    async with nebula(database, functions) as n:
        run_id = await n.start("saga", {"order": 1})
        row = await n.ended(run_id)
        assert (row["status"], row["error"]["type"], row["error"]["node_key"]) == ("failed", "ValueError", "ship")
        assert [name for name, _ in functions.seen] == ["book", "pay", "ship", "undo_pay", "undo_pay", "undo_book"]
        assert functions.inputs("undo_book") == [{"input": {"order": 1}, "output": "B1"}]
        nodes = await n.nodes(run_id)
        assert [nodes[key]["compensation"] for key in ("book", "pay", "ship")] == ["succeeded", "succeeded", None]
        assert nodes["mail"]["status"] == "skipped"


async def test_after_a_failure_nothing_new_begins(database: Database) -> None:
    """EV15. Nodes that run beside it are cancelled, or finish, as the workflow says."""
    slow_ended: list[str] = []
    pause_s = 60.0

    async def slow(given: Any) -> Any:
        try:
            await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            slow_ended.append("cancelled")
            raise
        slow_ended.append("finished")
        return given

    async def bad(_given: Any) -> Any:
        await asyncio.sleep(0.05)
        raise Failed

    graph = {
        "nodes": [
            function("slow", "slow"),
            function("bad", "bad"),
            function("next"),
            node("timer", "wait", seconds=99),
        ],
        "edges": [{"from": "slow", "to": "next"}],
    }
    await workflow(database, "cancel", graph)
    await workflow(database, "finish", graph, on_failure="finish")
    async with nebula(database, {"slow": slow, "bad": bad}) as n:
        for name, status, how in (("cancel", "cancelled", "cancelled"), ("finish", "succeeded", "finished")):
            pause_s = 60.0 if name == "cancel" else 0.2
            run_id = await n.start(name)
            assert (await n.ended(run_id))["status"] == "failed"
            nodes = await n.nodes(run_id)
            assert {key: row["status"] for key, row in nodes.items()} == {
                "slow": status,
                "bad": "failed",
                "next": "skipped",
                "timer": "cancelled",
            }
            assert slow_ended.pop() == how


async def test_waits_hold_no_worker(database: Database) -> None:
    """EV13, EV14: wait. One worker has room for many runs that wait."""
    until = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    timed = chain(node("t", "wait", seconds="$.input.s"), node("u", "wait", until="$.input.until"), function("f"))
    await workflow(database, "timed", timed)
    await workflow(database, "event", chain(node("e", "wait_event", key="$.input.key"), output="$.nodes.e.output"))
    waited = chain(node("e", "wait_event", key="k", timeout_s=0.2, catch=[{"goto": "late"}]))
    waited["nodes"].append(node("late", "pass", value="$.error.type"))
    await workflow(database, "late", waited)
    async with nebula(database, workers=1) as n:
        timers = [await n.start("timed", {"s": 0.2, "until": until}) for _ in range(5)]
        early, late = await n.start("event", {"key": "a"}), await n.start("event", {"key": "a"})
        await n.runs.send(SCOPE, early, "b", b'"not this"', by="key:test")
        await n.runs.send(SCOPE, early, "a", b'"early"', by="key:test")
        assert (await n.ended(early))["output"] == "early"
        await n.waits(late, "e")
        await n.runs.send(SCOPE, late, "a", b'{"x":1}', by="key:test")
        assert (await n.ended(late))["output"] == {"x": 1}
        assert await n.result("late") == {"late": "Nova.Timeout"}
        for run_id in timers:
            row = await n.ended(run_id)
            assert row["finished_at"] - row["created_at"] >= timedelta(seconds=0.2)
        with pytest.raises(NovaError) as ended:
            await n.runs.send(SCOPE, late, "a", b"1", by="key:test")
        assert ended.value.code == "invalid_state"


async def test_people_decide_once(database: Database) -> None:
    asked = node("ok", "wait_event", approval={"title": "Pay?", "approvers": ["key:alice"]}, timeout_s=60)
    await workflow(database, "w", chain(function("f"), asked, output="$.nodes.ok.output"))

    async def approval(run_id: str) -> Any:
        row = await database.one(
            "SELECT id::text AS id, status, input, expires_at FROM approvals WHERE run_id = %(id)s", id=run_id
        )
        assert row is not None
        return row

    async with nebula(database) as n:
        yes, no, gone = [await n.start("w", {"sum": 5}) for _ in range(3)]
        for run_id in (yes, no, gone):
            await n.waits(run_id, "ok")
        found = await approval(yes)
        assert (found["status"], found["input"]) == ("pending", {"sum": 5})
        with pytest.raises(NovaError) as stranger:
            await n.runs.decide(SCOPE, found["id"], True, by="key:bob")
        assert stranger.value.code == "forbidden"
        await n.runs.decide(SCOPE, found["id"], True, by="key:alice", comment="fine", payload=b"[1]")
        assert (await n.ended(yes))["output"] == {
            "approved": True,
            "by": "key:alice",
            "comment": "fine",
            "payload": [1],
        }
        with pytest.raises(NovaError) as second:
            await n.runs.decide(SCOPE, found["id"], False, by="key:alice")
        assert second.value.code == "invalid_state"
        await n.runs.decide(SCOPE, (await approval(no))["id"], False, by="key:alice")
        assert (await n.ended(no))["error"]["type"] == "Nova.Rejected"
        await n.runs.cancel(SCOPE, gone, "", True, by="key:test")
        assert (await n.ended(gone))["status"] == "cancelled"
        assert (await approval(gone))["status"] == "cancelled"


async def test_a_hundred_nested_runs_finish_with_one_worker(database: Database) -> None:
    """EV14."""
    down = {"path": "$.input.left", "op": "gt", "value": 0}
    nested = {
        "nodes": [
            function("less", "less"),
            node("more", "choice", branches=[{"when": down, "goto": "below"}]),
            node("below", "sub_workflow", workflow_name="nest", input_mapping="$.nodes.less.output"),
        ],
        "edges": [{"from": "less", "to": "more"}],
        "output": {"left": "$.input.left"},
    }
    await workflow(database, "nest", nested)
    functions = {"less": lambda given: {"left": given["left"] - 1}}
    async with nebula(database, functions, workers=1, max_depth=101) as n:
        assert await n.result("nest", {"left": 100}) == {"left": 100}
        row = await database.one("SELECT count(*) AS n FROM dag_runs WHERE status = 'succeeded'")
        assert row is not None
        assert row["n"] == 101


async def test_errors_of_runs_below_and_cancelling_them(database: Database) -> None:
    async def slow(_given: Any) -> Any:
        await asyncio.sleep(30)

    await workflow(database, "bad", chain(node("x", "fail", error="Broken", cause="by design")))
    policy = {"max_attempts": 2, "base_ms": 1}
    await workflow(database, "above", chain(node("s", "sub_workflow", workflow_name="bad", retry_policy=policy)))
    nobody = node("s", "sub_workflow", workflow_name="nobody", catch=[{"goto": "c"}])
    await workflow(database, "missing", {"nodes": [nobody, node("c", "pass", value="$.error.type")]})
    await workflow(database, "slow", chain(function("f", "slow", compensate={"function_name": "undo"})))
    await workflow(
        database,
        "parent",
        chain(function("a", compensate={"function_name": "undo"}), node("s", "sub_workflow", workflow_name="slow")),
    )
    async with nebula(database, {"slow": slow}) as n:
        row = await n.ended(await n.start("above"))
        assert (row["status"], row["error"]["type"], row["error"]["message"]) == ("failed", "Broken", "by design")
        below = await database.one("SELECT count(*) AS n FROM dag_runs WHERE workflow_name = 'bad'")
        assert below is not None
        assert below["n"] == 2
        assert await n.result("missing") == {"c": "Nova.NotFound"}
        parent = await n.start("parent")
        async with asyncio.timeout(10):
            while not n.functions.inputs("slow"):
                await asyncio.sleep(0.01)
        await n.runs.cancel(SCOPE, parent, "enough", True, by="key:test")
        row = await n.ended(parent)
        assert (row["status"], row["error"]["message"]) == ("cancelled", "enough")
        child = await database.one("SELECT id::text AS id FROM dag_runs WHERE workflow_name = 'slow'")
        assert child is not None
        assert (await n.ended(child["id"]))["status"] == "cancelled"
        assert len(n.functions.inputs("undo")) == 1


async def test_pause_resume_and_the_time_of_a_run(database: Database) -> None:
    gate = asyncio.Event()

    async def held(given: Any) -> Any:
        await gate.wait()
        return given

    await workflow(database, "w", chain(function("a", "held"), function("b")))
    async with nebula(database, {"held": held}) as n:
        run_id = await n.start("w")
        await n.until(run_id, lambda row: row["owner"] is not None)
        await n.runs.pause(SCOPE, run_id, by="key:test")
        gate.set()
        await n.until(run_id, lambda row: row["status"] == "paused" and row["owner"] is None)
        assert (await n.nodes(run_id))["a"]["status"] == "succeeded"
        assert "b" not in await n.nodes(run_id)
        await n.runs.resume(SCOPE, run_id, by="key:test")
        assert (await n.ended(run_id))["status"] == "succeeded"
        gate.clear()
        late = await n.ended(await n.start("w", timeout_s=0.2))
        assert (late["status"], late["error"]["type"]) == ("timed_out", "Nova.Timeout")


async def test_runs_above_the_limit_wait_or_are_refused(database: Database) -> None:
    gate = asyncio.Event()

    async def held(given: Any) -> Any:
        await gate.wait()
        return given

    for name, how in (("queue", "queue"), ("reject", "reject")):
        await workflow(database, name, chain(function("a", "held")), max_concurrent_runs=2, on_limit=how)
    async with nebula(database, {"held": held}) as n:
        runs = [await n.start("queue") for _ in range(5)]
        statuses = [(await n.run(run_id))["status"] for run_id in runs]
        assert statuses == ["running", "running", "pending", "pending", "pending"]
        await n.runs.cancel(SCOPE, runs[2], "", True, by="key:test")
        assert (await n.ended(runs[2]))["status"] == "cancelled"
        late = await n.ended(await n.start("queue", timeout_s=0.2))
        assert (late["status"], late["started_at"]) == ("timed_out", None)
        kept = [await n.start("reject", key=f"k{no}") for no in range(2)]
        with pytest.raises(NovaError) as refused:
            await n.start("reject")
        assert (refused.value.code, refused.value.status) == ("inflight_limit", 429)
        assert await n.start("reject", key="k1") == kept[1]
        gate.set()
        for run_id in (*runs[:2], *runs[3:], *kept):
            assert (await n.ended(run_id))["status"] == "succeeded"


async def test_one_run_for_each_key(database: Database) -> None:
    """EV12: whatever is tried again, there is one run."""
    await workflow(database, "w", chain(function("f")))
    await workflow(database, "halted", chain(function("f")), halted=True)
    async with nebula(database) as n:
        ids = await asyncio.gather(*(n.start("w", key="order-1") for _ in range(50)))
        assert len(set(ids)) == 1
        await n.ended(ids[0])
        assert await n.start("w", key="order-1") == ids[0]
        assert len(n.functions.seen) == 1
        for name, code in (("halted", "halted"), ("nobody", "not_found")):
            with pytest.raises(NovaError) as refused:
                await n.start(name)
            assert refused.value.code == code
        with pytest.raises(NovaError) as version:
            await n.start("w", version=9)
        assert version.value.code == "not_found"


async def test_again_from_where_it_failed_and_forks(database: Database) -> None:
    """Finished nodes keep their results; a fork begins at a node with another input."""
    mapped = node("m", "map", items=[1, 2, 3], do={"node_type": "function", "function_name": "item"})
    definition = chain(function("a", "a"), mapped, function("b", "b"), output="$.nodes.b.output")
    await workflow(database, "w", definition)
    item_two = failing(1)
    functions = Functions(
        {"a": lambda given: given, "b": failing(1), "item": lambda given: item_two(0) if given == 2 else given}
    )
    async with nebula(database, functions) as n:
        run_id = await n.start("w", {"x": 1})
        assert (await n.ended(run_id))["status"] == "failed"
        assert await n.runs.retry(SCOPE, run_id, "failed", by="key:test") == 2
        assert (await n.ended(run_id))["status"] == "failed"
        assert functions.inputs("item").count(1) <= 2
        assert functions.inputs("item").count(2) == 2
        await n.runs.retry(SCOPE, run_id, "failed", by="key:test")
        row = await n.ended(run_id)
        assert (row["status"], row["output"], row["generation"]) == ("succeeded", "well", 3)
        assert len(functions.inputs("a")) == 1
        with pytest.raises(NovaError) as done:
            await n.runs.retry(SCOPE, run_id, "failed", by="key:test")
        assert done.value.code == "invalid_state"
        fork = await n.runs.fork(SCOPE, run_id, "b", payload=b'{"other":1}', caller="key:test")
        row = await n.ended(fork)
        assert (row["status"], str(row["forked_from"])) == ("succeeded", run_id)
        assert functions.inputs("b")[-1] == {"other": 1}
        assert len(functions.inputs("a")) == 1
        again = await n.runs.fork(SCOPE, run_id, "start", payload=b'{"x":2}', caller="key:test")
        await n.ended(again)
        assert functions.inputs("a") == [{"x": 1}, {"x": 2}]
        with pytest.raises(NovaError) as nowhere:
            await n.runs.fork(SCOPE, run_id, "nowhere", caller="key:test")
        assert nowhere.value.errors[0].field == "from"


async def test_one_branch_again_keeps_the_others(database: Database) -> None:
    branches = [chain(function("x", f"x{no}"), function("y", f"y{no}")) for no in range(2)]
    await workflow(
        database, "w", chain(function("a", "a"), node("p", "parallel", branches=branches), function("z", "z"))
    )
    async with nebula(database, {"y1": failing(1), "z": failing(1)}) as n:
        run_id = await n.start("w", {})
        for _ in range(2):
            assert (await n.ended(run_id))["status"] == "failed"
            # told too late: it must not end what begins again
            await database.run(
                "INSERT INTO dag_events (id, tenant_id, namespace, run_id, kind, payload, sender) VALUES"
                " (gen_random_uuid(), 'default', 'default', %(run)s, 'cancel', '{}', 'key:test')",
                run=run_id,
            )
            await n.runs.retry(SCOPE, run_id, "failed", by="key:test")
        assert (await n.ended(run_id))["status"] == "succeeded"
        fork = await n.runs.fork(SCOPE, run_id, "p/1/y", payload=b'"other"', caller="key:test")
        row = await n.ended(fork)
        assert row["output"] == {"z": "well"}
        assert (await n.nodes(fork))["p"]["output"][1] == {"y": "well"}
        assert n.functions.inputs("y1")[-1] == "other"
        counts = {name: len(n.functions.inputs(name)) for name in ("a", "x0", "y0", "x1", "y1", "z")}
        assert counts == {"a": 1, "x0": 1, "y0": 1, "x1": 1, "y1": 3, "z": 3}


async def test_a_call_is_made_for_whoever_began_the_run(database: Database) -> None:
    await workflow(database, "w", chain(function("f", timeout_s=7, qualifier="live")))
    async with nebula(database) as n:
        await n.ended(await n.start("w", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01", source="function:x>y"))
        call = n.functions.calls[0]
        assert (call.identity.subject, call.trigger, call.caller) == ("key:test", "workflow", "workflow:w")
        assert (call.timeout_ms, call.qualifier, call.chain) == (7000, "live", ("x", "y"))
        assert call.traceparent is not None


async def test_the_first_of_several_and_an_early_end(database: Database) -> None:
    """A join of any goes on with the first; succeed ends the run, and what still runs is cancelled."""
    ended: list[str] = []

    async def slow(_given: Any) -> Any:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    graph = {
        "nodes": [
            function("fast"),
            function("slow", "slow"),
            node("first", "pass", join="any", value={"from": "$.nodes.fast.output.who"}),
            node("done", "succeed", input_mapping={"won": "$.nodes.first.output.from"}),
            function("never"),
        ],
        "edges": [
            {"from": "fast", "to": "first"},
            {"from": "slow", "to": "first"},
            {"from": "first", "to": "done"},
            {"from": "slow", "to": "never"},
        ],
    }
    await workflow(database, "w", graph)
    await workflow(database, "slow", chain(function("f", "slow")))
    limited = node("s", "sub_workflow", workflow_name="slow", timeout_s=0.2)
    await workflow(database, "limited", chain(limited))
    async with nebula(database, {"slow": slow}) as n:
        run_id = await n.start("w", {"who": "fast"})
        row = await n.ended(run_id)
        assert (row["status"], row["output"]) == ("succeeded", {"won": "fast"})
        async with asyncio.timeout(10):
            while ended != ["cancelled"]:
                await asyncio.sleep(0.01)
        states = {key: row["status"] for key, row in (await n.nodes(run_id)).items()}
        assert (states["slow"], states["never"]) == ("cancelled", "skipped")
        late = await n.ended(await n.start("limited"))
        assert (late["status"], late["error"]["type"], late["error"]["node_key"]) == ("failed", "Nova.Timeout", "s")
        below = await database.one("SELECT id::text AS id FROM dag_runs WHERE workflow_name = 'slow'")
        assert below is not None
        assert (await n.ended(below["id"]))["status"] in ("cancelled", "timed_out")
