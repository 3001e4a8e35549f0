"""Rollouts, as users order them and as the duty moves them, on call records that the test writes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.domain.identity import Scope
from nova.domain.rollout import Routing
from nova.errors import FunctionError
from nova.scheduling.rollouts import Rollouts
from nova.service import Background
from nova.store import callrows
from nova.store.callrows import FinishedCall
from nova.store.db import Connection
from nova.store.functions import FunctionRecord
from nova.store.invocations import InvocationStore
from nova.work.queue import LeaseLost
from tests.control.support import Control, fields, problem
from tests.execution.fakes import make_snapshot
from tests.execution.finished import finished

pytestmark = pytest.mark.anyio
PATH = "/functions/hello/rollout"
SOON = [{"percent": 10, "hold_s": 0}, {"percent": 50.5, "hold_s": 0}]


class Held:
    """A fence; ``lost`` from the moment a test says so."""

    lost = False

    @property
    def held(self) -> bool:
        return not self.lost

    async def check(self, conn: Connection) -> None:
        if self.lost:
            raise LeaseLost("rollouts")


@pytest.fixture(autouse=True)
async def three_versions(plane: Control) -> None:
    """1 is live, 2 and 3 are published."""
    await plane.create()
    await plane.patch(timeout_s=2, deploy="publish")
    await plane.patch(timeout_s=3, deploy="publish", max_replicas=7)


async def put(plane: Control, **members: Any) -> dict[str, Any]:
    answer = await plane.client.put(PATH, json={"to_version": 2, **members})
    assert answer.status_code == 200, answer.text
    started: dict[str, Any] = answer.json()
    return started


async def order(plane: Control, action: str) -> dict[str, Any]:
    answer = await plane.client.post(f"{PATH}/{action}")
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


async def function(plane: Control) -> FunctionRecord:
    record = await plane.functions.lookup(Scope(), "hello")
    assert record is not None
    return record


async def calls(
    plane: Control, version: int, count: int, *, failed: int = 0, ms: float = 2.0, qualifier: str | None = None
) -> None:
    """Call records as a comet leaves them."""
    snapshot = make_snapshot("hello", function_id=(await function(plane)).id, version=version)
    error = FunctionError("ValueError", "no")
    rows = []
    for number in range(count):
        changes: dict[str, Any] = {"error": error} if number < failed else {}
        call, result = finished(snapshot, version=version, duration_us=round(ms * 1000), **changes)
        call.qualifier = qualifier
        done = FinishedCall(int(SYSTEM_CLOCK.now().timestamp() * 1e6), call, snapshot, result)
        rows.append(callrows.encode(callrows.version_prefix(snapshot), done, None, None))
    await InvocationStore(plane.database).append(rows, ())


@asynccontextmanager
async def leading(plane: Control, fence: Held | None = None) -> AsyncIterator[None]:
    tasks = Background("test")
    duty = Rollouts(plane.rollouts, SYSTEM_CLOCK, interval_s=0.01)
    task = tasks.spawn("lead", duty.lead(fence or Held()))
    try:
        yield
        assert not task.done(), "the duty ended"
    finally:
        await tasks.close()


async def reached(plane: Control, **wanted: Any) -> dict[str, Any]:
    """The status once it has these members."""
    async with asyncio.timeout(20):
        while True:
            status: dict[str, Any] = await plane.get(f"{PATH}/status")
            if {name: status[name] for name in wanted} == wanted:
                return status
            await asyncio.sleep(0.01)


def decisions(status: dict[str, Any]) -> list[str]:
    return [entry["action"] for entry in status["history"]]


async def test_a_rollout_steps_to_the_end_and_takes_the_alias_with_it(plane: Control) -> None:
    assert await plane.get(PATH) == {"enabled": False}
    started = await put(plane, to_version=3, steps=SOON)
    assert (started["enabled"], started["status"], started["from_version"]) == (True, "running", 1)
    assert (await function(plane)).rollout == Routing("live", 1, 3, 1000)
    problem(await plane.client.put(PATH, json={"to_version": 2}), 409, "invalid_state")
    problem(await plane.client.delete("/functions/hello/versions/3"), 409, "in_use")
    async with leading(plane):
        status = await reached(plane, status="promoted")
    assert decisions(status) == ["start", "advance", "promote"]
    assert [entry["percent"] for entry in status["history"]] == [10, 50.5, 100]
    record = await function(plane)
    assert (record.live_version, record.rollout, record.settings.recorded.max_replicas) == (3, None, 7)
    assert (await plane.get(PATH))["enabled"] is False
    problem(await plane.client.post(f"{PATH}/abort"), 409, "invalid_state")
    assert (await plane.client.delete(PATH)).status_code == 204
    problem(await plane.client.delete(PATH), 404, "not_found")


@pytest.mark.parametrize(
    ("guard", "canary", "reason"),
    [
        ({"max_error_rate_pct": 10}, {"count": 20, "failed": 3}, "15.0 % of 20 calls failed, above 10 %"),
        ({"max_p95_ms": 100}, {"count": 20, "ms": 400.0}, "above 100 ms"),
        ({"vs_baseline_pct": 50}, {"count": 20, "ms": 9.0}, "of the baseline's"),
        ({"vs_baseline_pct": 5}, {"count": 20, "failed": 2}, "10.0 % of its calls failed, 0.0 % of the baseline's"),
    ],
)
async def test_a_breach_gives_all_calls_back(
    plane: Control, guard: dict[str, Any], canary: dict[str, Any], reason: str
) -> None:
    await put(plane, steps=[{"percent": 10, "hold_s": 3600}], guard={"min_samples": 20, **guard})
    async with leading(plane):
        await calls(plane, 1, 40)
        await calls(plane, 2, canary["count"] - 1, failed=canary.get("failed", 0), ms=canary.get("ms", 2.0))
        status = await reached(plane, status="running")
        assert status["target"]["calls"] == 19
        await calls(plane, 2, 1, ms=canary.get("ms", 2.0))
        status = await reached(plane, status="rolled_back")
    assert reason in status["history"][-1]["reason"]
    assert status["history"][-1]["by"] == "guard"
    record = await function(plane)
    assert (record.live_version, record.rollout) == (1, None)


async def test_what_is_not_judged_goes_on_and_what_is_needs_calls(plane: Control) -> None:
    """Calls that name a version, and calls of before, are no samples; without enough of them no step ends."""
    await calls(plane, 2, 30, failed=30)
    await put(plane, steps=SOON, guard={"min_samples": 10, "max_error_rate_pct": 50})
    async with leading(plane):
        await calls(plane, 2, 30, failed=30, qualifier="2")
        await calls(plane, 2, 9)
        await reached(plane, step=1, status="running")
        await calls(plane, 2, 1)
        status = await reached(plane, step=2)
    assert "10 calls, 0.0 % errors" in status["history"][-1]["reason"]
    assert status["target"]["calls"] == 0, "each step counts its own"


async def test_a_breach_or_the_end_can_wait_for_a_person(plane: Control) -> None:
    await put(plane, steps=SOON, auto_promote=False)
    async with leading(plane):
        status = await reached(plane, status="paused", step=2)
        assert "promote or abort" in status["history"][-1]["reason"]
        assert (await function(plane)).rollout == Routing("live", 1, 2, 5050), "it keeps its share"
        assert (await order(plane, "promote"))["status"] == "promoted"
        assert (await function(plane)).live_version == 2
        await put(plane, to_version=3, auto_rollback=False, guard={"min_samples": 5, "max_error_rate_pct": 1})
        await calls(plane, 3, 5, failed=5)
        await reached(plane, status="paused", step=1)
        problem(await plane.client.post(f"{PATH}/pause"), 409, "invalid_state")
        resumed = await order(plane, "resume")
        assert (resumed["status"], resumed["target"]["calls"]) == ("running", 0)
        problem(await plane.client.post(f"{PATH}/resume"), 409, "invalid_state")
        assert (await order(plane, "pause"))["status"] == "paused"
        assert (await order(plane, "abort"))["status"] == "aborted"
    record = await function(plane)
    assert (record.live_version, record.rollout) == (2, None)


async def test_another_leader_goes_on_where_the_last_one_was(plane: Control) -> None:
    """What the first has counted counts for the next; the first, back from wherever it was, changes nothing."""
    await put(plane, steps=SOON, guard={"min_samples": 10, "max_error_rate_pct": 50})
    fence = Held()
    async with leading(plane):
        await calls(plane, 2, 10)
        await reached(plane, step=2)
        await calls(plane, 2, 6)
        await asyncio.sleep(0.03)  # whatever it has read by now, it takes along
    async with leading(plane):
        await calls(plane, 2, 4)
        status = await reached(plane, status="promoted")
    assert decisions(status) == ["start", "advance", "promote"]
    await put(plane, to_version=3, steps=SOON)
    fence.lost = True
    stale = Rollouts(plane.rollouts, SYSTEM_CLOCK, interval_s=0.01)
    [running] = await plane.rollouts.running()
    with pytest.raises(LeaseLost):
        await stale._look(fence, running)
    assert (await plane.get(f"{PATH}/status"))["step"] == 1


async def test_a_named_alias_moves_and_what_a_user_does_meanwhile_counts_more(plane: Control) -> None:
    await plane.client.post("/functions/hello/aliases", json={"name": "prod", "version": 1})
    sticky = {"by": "header", "name": "x-user"}
    started = await put(plane, alias="prod", steps=SOON, sticky=sticky)
    assert started["sticky"] == sticky
    routing = (await function(plane)).rollout
    assert routing is not None
    assert (routing.alias, routing.sticky.by, routing.sticky.name) == ("prod", "header", "x-user")
    async with leading(plane):
        await reached(plane, status="promoted")
        record = await function(plane)
        assert (record.live_version, record.aliases["prod"].split) == (1, ((2, 10_000),))
        await put(plane, alias="prod", to_version=3)
        await plane.client.patch("/functions/hello/aliases/prod", json={"version": 1})
        status = await reached(plane, status="aborted")
    assert "leads elsewhere" in status["history"][-1]["reason"]
    assert (await function(plane)).aliases["prod"].split == ((1, 10_000),)


async def test_bad_rollouts_are_refused(plane: Control) -> None:
    await plane.client.post("/functions/hello/aliases", json={"name": "both", "traffic_split": {"1": 50, "2": 50}})
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "to_version"),
        ({"to_version": 9}, "to_version"),
        ({"to_version": 1}, "to_version"),
        ({"to_version": 2, "alias": "1"}, "alias"),
        ({"to_version": 2, "steps": []}, "steps"),
        ({"to_version": 2, "steps": [{"percent": 0}]}, "steps.0.percent"),
        ({"to_version": 2, "steps": [{"percent": 1.234}]}, "steps.0.percent"),
        ({"to_version": 2, "steps": [{"percent": 5, "hold_s": -1}]}, "steps.0.hold_s"),
        ({"to_version": 2, "steps": [{"percent": 50}, {"percent": 5}]}, "steps"),
        ({"to_version": 2, "guard": {"min_samples": 0}}, "guard.min_samples"),
        ({"to_version": 2, "guard": {"max_error_rate_pct": 101}}, "guard.max_error_rate_pct"),
        ({"to_version": 2, "guard": {"max_p95_ms": 0}}, "guard.max_p95_ms"),
        ({"to_version": 2, "guard": {"vs_baseline_pct": -1}}, "guard.vs_baseline_pct"),
        ({"to_version": 2, "sticky": {"by": "header"}}, "sticky"),
        ({"to_version": 2, "sticky": {"by": "ip", "name": "x"}}, "sticky"),
        ({"to_version": 2, "sticky": {"by": "payload", "name": "user"}}, "sticky"),
    ]
    for body, field in bad:
        document = problem(await plane.client.put(PATH, json=body), 400, "validation_failed")
        assert any(name.startswith(field) for name in fields(document)), (body, document)
    problem(await plane.client.put(PATH, json={"to_version": 2, "alias": "none"}), 404, "not_found")
    problem(await plane.client.put(PATH, json={"to_version": 2, "alias": "both"}), 409, "invalid_state")
    problem(await plane.client.put("/functions/none/rollout", json={"to_version": 2}), 404, "not_found")
    problem(await plane.client.get(f"{PATH}/status"), 404, "not_found")
    assert await plane.get(PATH) == {"enabled": False}


async def test_a_shadow_policy_is_kept_shown_and_refused(plane: Control) -> None:
    path = "/functions/hello/shadow"
    assert await plane.get(path) == {"enabled": False}
    body = {"target": "2", "percent": 12.5, "compare": "status", "ignore": ["/at"], "max_inflight": 3}
    answer = await plane.client.put(path, json=body)
    assert answer.status_code == 200, answer.text
    kept = await plane.get(path)
    assert {name: kept[name] for name in body} == body
    shadow = (await function(plane)).shadow
    assert shadow is not None
    assert (shadow.target, shadow.weight, shadow.ignore) == ("2", 1250, ("/at",))
    problem(await plane.client.delete("/functions/hello/versions/2"), 409, "in_use")
    await plane.client.put(path, json=body | {"enabled": False})
    assert (await function(plane)).shadow is None
    assert (await plane.get(f"{path}/report"))["compared"] == 0
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "target"),
        ({"target": "9"}, "target"),
        ({"target": "none"}, "target"),
        ({"target": "a b"}, "target"),
        ({"target": "2", "percent": 0}, "percent"),
        ({"target": "2", "compare": "all"}, "compare"),
        ({"target": "2", "ignore": ["at"]}, "ignore.0"),
        ({"target": "2", "max_inflight": 0}, "max_inflight"),
    ]
    for bad_body, field in bad:
        document = problem(await plane.client.put(path, json=bad_body), 400, "validation_failed")
        assert any(name.startswith(field) for name in fields(document)), (bad_body, document)
    assert (await plane.client.delete(path)).status_code == 204
    problem(await plane.client.delete(path), 404, "not_found")
    problem(await plane.client.get(f"{path}/report"), 404, "not_found")
