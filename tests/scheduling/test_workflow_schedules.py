"""Schedules of workflows: each instant begins a run, once, with everything that holds for functions."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.store.apikeys import KeyGrant
from nova.store.db import Row
from nova.store.workflows import WorkflowStore
from tests.control.support import fields, problem
from tests.events.workflows.support import chain, node, workflow
from tests.scheduling.support import Plane, Stage, planed

pytestmark = pytest.mark.anyio
PATH = "/workflows/nightly/schedules"
WAITS = chain(node("wait", "wait_event", key="go"))


@pytest.fixture
async def plane(stage: Stage) -> AsyncIterator[Plane]:
    await workflow(stage.db, "nightly", WAITS, version=1)
    await workflow(stage.db, "nightly", WAITS, version=2)
    async with planed(stage) as running:
        yield running


async def made(plane: Plane, expression: str = "@every 1s", **members: Any) -> dict[str, Any]:
    answer = await plane.client.post(PATH, json={"cron_expression": expression, **members})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"{PATH}/{found['id']}"
    return found


async def runs(plane: Plane) -> list[Row]:
    """Of the workflow, in the order in which they began."""
    return await plane.stage.db.fetch(
        "SELECT *, id::text AS id, extract(epoch FROM deadline_at - created_at) AS time FROM dag_runs ORDER BY dag_runs.id"
    )


async def history(plane: Plane, schedule: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Newest first, once that many instants were decided about."""
    async with asyncio.timeout(20):
        while len(found := (await plane.get(f"/schedules/{schedule['id']}/runs"))["items"]) < count:
            await asyncio.sleep(0.01)
    items: list[dict[str, Any]] = found
    return items


async def tick(plane: Plane, schedule: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A second passes, with which there are ``count`` instants."""
    plane.stage.hand.move(1)
    plane.stage.ears.tell()
    return await history(plane, schedule, count)


async def end(plane: Plane, run_id: str) -> None:
    await plane.stage.db.run(
        "UPDATE dag_runs SET status = 'succeeded', finished_at = now() WHERE id = %(id)s::uuid", id=run_id
    )
    plane.stage.ears.tell()


async def test_an_instant_begins_a_run_that_the_history_leads_to(plane: Plane) -> None:
    schedule = await made(plane, name="each", qualifier="2", timeout_s=90, overlap_policy="allow")
    assert (schedule["target_type"], schedule["target"]) == ("workflow", "nightly")
    plain = await made(plane, name="plain", input={"day": 1})
    async with plane.stage.leading():
        (run,) = await tick(plane, schedule, 1)
        await history(plane, plain, 1)
    rows = {row["source"]: row for row in await runs(plane)}
    first, second = rows["schedule:each"], rows["schedule:plain"]
    assert (run["status"], run["outcome"], run["run_id"]) == ("fired", "running", first["id"])
    assert run["invocation_id"] is None
    assert (first["workflow_name"], first["version"], first["caller"]) == ("nightly", 2, "operator")
    assert first["time"] == 90
    assert (first["input"]["type"], first["input"]["subject"]) == ("nova.schedule.fired", "each")
    assert (second["version"], second["input"], second["time"]) == (1, {"day": 1}, 365 * 86_400)
    assert await plane.stage.jobs() == []
    await end(plane, first["id"])
    assert (await history(plane, schedule, 1))[0]["outcome"] == "succeeded"


async def test_an_instant_waits_is_skipped_or_cancels_while_a_run_goes_on(plane: Plane) -> None:
    skips = await made(plane, name="skips", overlap_policy="skip")
    queues = await made(plane, name="queues", overlap_policy="queue")
    cancels = await made(plane, name="cancels", overlap_policy="cancel_previous")
    async with plane.stage.leading():
        for count in range(1, 5):  # each instant by itself
            plane.stage.hand.move(1)
            plane.stage.ears.tell()
            for schedule in (skips, queues, cancels):
                await history(plane, schedule, count)
        before = {one["name"]: (await history(plane, one, 4))[-1] for one in (skips, queues, cancels)}
        assert {one["status"] for one in (await history(plane, skips, 4))[:-1]} == {"skipped"}
        assert "queued" in {one["status"] for one in await history(plane, queues, 4)}
        newest = (await history(plane, cancels, 4))[0]
        assert (newest["status"], newest["run_id"] != before["cancels"]["run_id"]) == ("fired", True)
        told = await plane.stage.db.fetch("SELECT run_id::text AS run, sender FROM dag_events WHERE kind = 'cancel'")
        assert before["cancels"]["run_id"] in {row["run"] for row in told}
        assert {row["sender"] for row in told} == {"schedule:cancels"}
        await end(plane, before["queues"]["run_id"])
        async with asyncio.timeout(20):
            while [one["status"] for one in await history(plane, queues, 4)].count("fired") < 2:
                await asyncio.sleep(0.01)


async def test_what_cannot_begin_has_failed_and_says_why(plane: Plane) -> None:
    schedule = await made(plane)
    await plane.stage.db.run("UPDATE dag_workflows SET halted = true")
    async with plane.stage.leading():
        (run,) = await tick(plane, schedule, 1)
    assert (run["status"], run["run_id"], run["outcome"]) == ("failed", None, None)
    assert "halted" in run["reason"]
    refused = problem(await plane.client.post(f"/schedules/{schedule['id']}/run"), 409, "invalid_state")
    assert "halted" in refused["detail"]
    assert await runs(plane) == []


async def test_fields_of_functions_and_versions_that_are_not_there_are_refused(plane: Plane) -> None:
    good = await made(plane, "@daily", name="good")
    for members, field, says in (
        ({"max_attempts": 2}, "max_attempts", "no such field"),
        ({"qualifier": "stable"}, "qualifier", "version number"),
        ({"qualifier": "$LATEST"}, "qualifier", "version number"),
        ({"qualifier": "3"}, "qualifier", "no version 3"),
        ({"timeout_s": 0}, "timeout_s", ""),
        ({"cron_expression": "0 99 * * *"}, "cron_expression", "at character 3"),
    ):
        created = await plane.client.post(PATH, json={"cron_expression": "@daily", **members})
        changed = await plane.client.patch(f"{PATH}/{good['id']}", json=members)
        for answer in (created, changed):
            document = problem(answer, 400, "unknown_field" if says == "no such field" else "validation_failed")
            assert fields(document) == [field]
            assert says in document["errors"][0]["message"]
    problem(await plane.client.post(PATH, json={"cron_expression": "@daily", "name": "good"}), 409, "already_exists")
    unknown = await plane.client.post("/workflows/none/schedules", json={"cron_expression": "@daily"})
    problem(unknown, 404, "not_found")
    assert (await plane.get(PATH))["items"] == [good]


async def test_a_schedule_belongs_to_its_workflow_and_goes_with_it(plane: Plane) -> None:
    schedule = await made(plane, "@daily", name="same")
    twin = await plane.create(name="same")
    assert await plane.get(f"{PATH}/{schedule['id']}") == schedule
    problem(await plane.client.get(f"/functions/f/schedules/{schedule['id']}"), 404, "not_found")
    problem(await plane.client.get(f"{PATH}/{twin['id']}"), 404, "not_found")
    assert (await plane.get("/schedules?target_type=workflow"))["items"] == [schedule]
    assert (await plane.get("/schedules?target_type=function"))["items"] == [twin]
    assert (await plane.get("/schedules?target=nightly"))["items"] == [schedule]
    changed = await plane.client.patch(f"{PATH}/{schedule['id']}", json={"timeout_s": 60, "qualifier": "1"})
    assert (changed.json()["timeout_s"], changed.json()["qualifier"]) == (60, "1")
    assert (await plane.patch(schedule, timeout_s=None))["timeout_s"] is None
    assert (await plane.client.delete(f"{PATH}/{twin['id']}")).status_code == 404
    workflows = WorkflowStore(plane.stage.db)
    async with plane.stage.db.transaction() as conn:
        await workflows.hold_schedules(conn, Scope(), "nightly")
        record = await workflows.lock(conn, Scope(), "nightly")
        assert record is not None
        await workflows.delete(conn, record.id)
    assert (await plane.get("/schedules"))["items"] == [twin]


async def test_who_makes_it_must_be_allowed_to_run_the_workflow(plane: Plane) -> None:
    schedule = await made(plane, "@daily")

    async def statuses(key: str) -> dict[str, int]:
        headers = {"X-API-Key": key}
        item = f"/schedules/{schedule['id']}"
        remote = plane.api.remote
        body = {"cron_expression": "@daily"}
        return {
            "get": (await remote.get(item, headers=headers)).status_code,
            "create": (await remote.post(PATH + "?dry_run=true", headers=headers, json=body)).status_code,
            "patch": (await remote.patch(item + "?dry_run=true", headers=headers, json={})).status_code,
            "run": (await remote.post(item + "/run", headers=headers)).status_code,
        }

    assert set((await statuses(await plane.api.key("operator"))).values()) == {200, 202}
    viewer = await statuses(await plane.api.key("viewer"))
    assert (viewer.pop("get"), set(viewer.values())) == (200, {403})
    of_functions = await statuses(await plane.api.key(grants=[KeyGrant("operator", ("f",))]))
    assert (of_functions.pop("create"), set(of_functions.values())) == (403, {404})
