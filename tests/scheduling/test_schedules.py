"""The API of schedules: what is checked, what is shown, who may, and that a change acts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.store.apikeys import KeyGrant
from tests.control.support import fields, problem
from tests.scheduling.support import PATH, Plane, Stage, function, planed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def plane(stage: Stage) -> AsyncIterator[Plane]:
    async with planed(stage) as running:
        yield running


async def test_a_schedule_has_its_defaults_and_its_next_instant(plane: Plane) -> None:
    made = await plane.create(name="nightly")
    assert made == await plane.get(f"/schedules/{made['id']}") == await plane.get(f"{PATH}/{made['id']}")
    shown = {key: made[key] for key in made if key not in ("id", "created_at", "updated_at")}
    assert shown == {
        "name": "nightly",
        "target_type": "function",
        "target": "f",
        "cron_expression": "0 3 * * *",
        "timezone": "UTC",
        "input": None,
        "qualifier": None,
        "enabled": True,
        "overlap_policy": "skip",
        "catch_up": "none",
        "catch_up_window_s": 3600,
        "jitter_s": 0,
        "start_at": None,
        "end_at": None,
        "max_attempts": None,
        "timeout_s": None,
        "next_run_at": "2026-11-23T03:00:00Z",
        "last_run_at": None,
        "last_status": None,
        "created_by": "operator",
    }


async def test_the_time_zone_and_the_window_shape_the_next_instant(plane: Plane) -> None:
    berlin = await plane.create(timezone="Europe/Berlin")
    assert berlin["next_run_at"] == "2026-11-23T02:00:00Z"
    later = await plane.create(start_at="2027-01-01T03:00:00Z")
    assert later["next_run_at"] == "2027-01-01T03:00:00Z"
    over = await plane.create(end_at="2026-11-23T02:59:59Z")
    assert over["next_run_at"] is None
    assert (await plane.patch(over, end_at=None))["next_run_at"] == "2026-11-23T03:00:00Z"


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"cron_expression": "0 99 * * *"}, "cron_expression", "at character 3"),
    ({"cron_expression": "CRON_TZ=No/Where 0 9 * * *"}, "cron_expression", "No/Where"),
    ({"timezone": "No/Where"}, "timezone", "No/Where"),
    ({"name": "no spaces"}, "name", ""),
    ({"qualifier": "9lives!"}, "qualifier", ""),
    ({"qualifier": "77"}, "qualifier", "no version or alias"),
    ({"overlap_policy": "maybe"}, "overlap_policy", ""),
    ({"catch_up": "some"}, "catch_up", ""),
    ({"catch_up_window_s": 0}, "catch_up_window_s", ""),
    ({"jitter_s": 3601}, "jitter_s", ""),
    ({"max_attempts": 0}, "max_attempts", ""),
    ({"start_at": "2027-01-01T00:00:00"}, "start_at", ""),
    ({"start_at": "2027-01-01T00:00:00Z", "end_at": "2026-01-01T00:00:00Z"}, "end_at", "later than start_at"),
    ({"last_status": "fired"}, "last_status", "no such field"),
    ({"timeout_s": 5}, "timeout_s", "no such field"),
]


async def test_bad_fields_are_refused_and_leave_nothing(plane: Plane) -> None:
    """SC5: on create and on update."""
    good = await plane.create(name="good")
    for members, field, says in BAD:
        created = await plane.client.post(PATH, json={"cron_expression": "@daily", **members})
        changed = await plane.client.patch(f"/schedules/{good['id']}", json=members)
        for answer in (created, changed):
            assert answer.status_code == 400, answer.text
            document = answer.json()
            assert fields(document) == [field]
            assert says in document["errors"][0]["message"]
    assert (await plane.get("/schedules"))["items"] == [good]


async def test_names_are_unique_for_a_function_and_made_up_when_not_given(plane: Plane) -> None:
    await function(plane.stage.db, "g")
    first = await plane.create(name="a")
    made_up = await plane.create()
    assert made_up["name"].startswith("schedule-")
    problem(await plane.client.post(PATH, json={"cron_expression": "@daily", "name": "a"}), 409, "already_exists")
    problem(await plane.client.patch(f"/schedules/{made_up['id']}", json={"name": "a"}), 409, "already_exists")
    assert (
        await plane.client.post("/functions/g/schedules", json={"cron_expression": "@daily", "name": "a"})
    ).is_success
    assert (await plane.patch(made_up, name="b"))["name"] == "b"
    problem(await plane.client.patch(f"/schedules/{first['id']}", json={"name": None}), 400, "validation_failed")
    problem(await plane.client.post("/functions/none/schedules", json={"cron_expression": "@daily"}), 404, "not_found")


async def test_a_patch_changes_what_it_names_and_null_is_the_default(plane: Plane) -> None:
    made = await plane.create(
        name="a", timezone="Asia/Tokyo", input={"x": {"y": 1}}, jitter_s=5, overlap_policy="queue", max_attempts=2
    )
    changed = await plane.patch(made, input={"z": [1.5, None]}, jitter_s=None, timezone=None, max_attempts=None)
    assert changed["input"] == {"z": [1.5, None]}  # a value: replaced, not merged
    assert (changed["jitter_s"], changed["timezone"], changed["max_attempts"]) == (0, "UTC", None)
    assert (changed["overlap_policy"], changed["name"]) == ("queue", "a")
    assert changed["next_run_at"] == "2026-11-23T03:00:00Z"
    assert (await plane.patch(changed, input=None))["input"] is None
    problem(
        await plane.client.patch(f"/schedules/{made['id']}", json={"cron_expression": None}), 400, "validation_failed"
    )


async def test_an_input_over_a_mebibyte_is_refused(plane: Plane) -> None:
    body = {"cron_expression": "@daily", "input": "x" * (1 << 20)}
    problem(await plane.client.post(PATH, json=body), 413, "payload_too_large")


async def test_dry_run_checks_and_writes_nothing(plane: Plane) -> None:
    body = {"cron_expression": "0 3 * * *", "name": "a"}
    answer = await plane.client.post(PATH + "?dry_run=true", json=body)
    assert (answer.status_code, answer.json()["next_run_at"]) == (200, "2026-11-23T03:00:00Z")
    assert (await plane.get("/schedules"))["items"] == []
    made = await plane.create(**body)
    would_be = await plane.client.patch(f"/schedules/{made['id']}?dry_run=true", json={"cron_expression": "0 4 * * *"})
    assert would_be.json()["next_run_at"] == "2026-11-23T04:00:00Z"
    assert await plane.get(f"/schedules/{made['id']}") == made
    bad = await plane.client.post(PATH + "?dry_run=true", json={"cron_expression": "x"})
    problem(bad, 400, "validation_failed")


async def test_lists_filter_and_page(plane: Plane) -> None:
    await function(plane.stage.db, "other")
    made = [await plane.create(name=f"s{n}") for n in range(3)]
    await plane.client.post("/functions/other/schedules", json={"cron_expression": "@daily", "name": "far"})
    await plane.patch(made[0], enabled=False)

    async def names(query: str) -> list[str]:
        return [item["name"] for item in (await plane.get(query))["items"]]

    assert await names("/schedules") == ["far", "s2", "s1", "s0"]
    assert await names(PATH) == ["s2", "s1", "s0"]
    assert await names("/schedules?target=other") == ["far"]
    assert await names("/schedules?enabled=false") == ["s0"]
    assert await names("/schedules?q=S1") == ["s1"]
    assert await names("/schedules?q=othe") == ["far"]
    for path, everything in (("/schedules", ["far", "s2", "s1", "s0"]), (PATH, ["s2", "s1", "s0"])):
        seen: list[str] = []
        cursor = ""
        for _ in range(10):
            page = await plane.get(f"{path}?limit=2{cursor}")
            seen += [item["name"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert seen == everything
    problem(await plane.client.get("/schedules?cursor=nonsense"), 400, "invalid_cursor")


async def test_a_deleted_schedule_is_gone_with_its_history(plane: Plane) -> None:
    made = await plane.create()
    await plane.post(f"/schedules/{made['id']}/run", 202)
    assert (await plane.client.delete(f"{PATH}/{made['id']}")).status_code == 204
    problem(await plane.client.delete(f"/schedules/{made['id']}"), 404, "not_found")
    problem(await plane.client.get(f"/schedules/{made['id']}/runs"), 404, "not_found")
    problem(await plane.client.get("/schedules/no-uuid"), 404, "not_found")
    assert await plane.stage.db.fetch("SELECT 1 FROM schedule_runs") == []


async def test_a_schedule_is_found_under_its_own_function_only(plane: Plane) -> None:
    await function(plane.stage.db, "other")
    made = await plane.create()
    for method in ("GET", "PATCH", "DELETE"):
        content = b"{}" if method == "PATCH" else b""
        headers = {"Content-Type": "application/json"}
        path = f"/functions/other/schedules/{made['id']}"
        answer = await plane.client.request(method, path, content=content, headers=headers)
        problem(answer, 404, "not_found")


async def test_run_fires_now_even_when_it_is_paused(plane: Plane) -> None:
    made = await plane.create(name="a", enabled=False, input={"by": "hand"}, max_attempts=4)
    run = await plane.post(f"/schedules/{made['id']}/run", 202)
    assert (run["status"], run["outcome"], run["catch_up"]) == ("fired", "queued", False)
    assert "operator" in run["reason"]
    (job,) = await plane.stage.jobs()
    assert (str(job["id"]), job["payload"], job["max_attempts"]) == (run["invocation_id"], {"by": "hand"}, 4)
    assert (job["source"], job["caller"]) == ("schedule:a", "operator")
    shown = await plane.get(f"/schedules/{made['id']}")
    assert (shown["last_status"], shown["last_run_at"], shown["next_run_at"]) == ("fired", run["fired_at"], None)
    await plane.stage.end_jobs()
    assert [item["outcome"] for item in (await plane.get(f"/schedules/{made['id']}/runs"))["items"]] == ["succeeded"]


async def test_pause_holds_and_resume_goes_on_from_now(plane: Plane) -> None:
    made = await plane.create(cron_expression="@every 1s")
    paused = await plane.post(f"/schedules/{made['id']}/pause")
    assert (paused["enabled"], paused["next_run_at"]) == (False, None)
    assert await plane.post(f"/schedules/{made['id']}/pause") == paused
    async with plane.stage.leading():
        plane.stage.hand.move(100)
        await asyncio.sleep(0.05)
        resumed = await plane.post(f"/schedules/{made['id']}/resume")
        assert resumed["enabled"]
        plane.stage.ears.tell()
        plane.stage.hand.move(1)
        async with asyncio.timeout(20):
            while not (items := (await plane.get(f"/schedules/{made['id']}/runs"))["items"]):
                await asyncio.sleep(0.01)
    (item,) = items
    assert (item["scheduled_for"], item["status"]) == ("2026-11-22T12:01:41Z", "fired")


async def test_a_changed_expression_acts_at_its_next_instant(plane: Plane) -> None:
    """SC4: without a restart."""
    made = await plane.create(cron_expression="0 3 * * *")
    async with plane.stage.leading():
        await asyncio.sleep(0.05)
        await plane.patch(made, cron_expression="@every 2s")
        plane.stage.ears.tell()
        plane.stage.hand.move(2)
        async with asyncio.timeout(20):
            while not await plane.stage.jobs():
                await asyncio.sleep(0.01)


async def test_the_history_filters_and_pages(plane: Plane) -> None:
    made = await plane.create(cron_expression="@every 1s", overlap_policy="skip")
    async with plane.stage.leading():
        async with asyncio.timeout(20):
            for count in range(1, 6):
                plane.stage.ears.tell()
                plane.stage.hand.move(1)
                while len((await plane.get(f"/schedules/{made['id']}/runs"))["items"]) < count:
                    await asyncio.sleep(0.01)
    path = f"/schedules/{made['id']}/runs"
    assert [item["status"] for item in (await plane.get(path))["items"]] == ["skipped"] * 4 + ["fired"]
    assert [item["fired_at"] is None for item in (await plane.get(path + "?status=skipped"))["items"]] == [True] * 4
    assert len((await plane.get(path + "?status=fired"))["items"]) == 1
    first = await plane.get(path + "?limit=3")
    second = await plane.get(path + f"?limit=3&cursor={first['next_cursor']}")
    instants = [item["scheduled_for"] for item in first["items"] + second["items"]]
    assert instants == [f"2026-11-22T12:00:0{n}Z" for n in (5, 4, 3, 2, 1)]
    assert second["next_cursor"] is None


async def test_preview_shows_the_next_instants_or_says_what_is_wrong(plane: Plane) -> None:
    shown = await plane.get("/schedules/preview?cron=30+2+*+*+*&timezone=Europe/Berlin&n=2&after=2026-03-28T12:00:00Z")
    assert shown["instants"] == ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    now = await plane.get("/schedules/preview?cron=@hourly")
    assert (len(now["instants"]), now["instants"][0], now["timezone"]) == (10, "2026-11-22T13:00:00Z", "UTC")
    wrong = problem(await plane.client.get("/schedules/preview?cron=*+*+*+*+9"), 400, "validation_failed")
    assert (fields(wrong), "at character 9" in wrong["detail"]) == (["cron"], True)
    zone = problem(await plane.client.get("/schedules/preview?cron=@daily&timezone=Mars"), 400, "validation_failed")
    assert fields(zone) == ["timezone"]
    problem(await plane.client.get("/schedules/preview?cron=@daily&n=101"), 400, "validation_failed")


async def test_who_makes_a_schedule_must_be_allowed_to_call_the_function(plane: Plane) -> None:
    made = await plane.create(name="a")
    body = {"cron_expression": "@daily"}

    async def statuses(key: str) -> dict[str, int]:
        headers = {"X-API-Key": key}
        item = f"/schedules/{made['id']}"
        remote = plane.api.remote
        return {
            "get": (await remote.get(item, headers=headers)).status_code,
            "create": (await remote.post(PATH + "?dry_run=true", headers=headers, json=body)).status_code,
            "patch": (await remote.patch(item + "?dry_run=true", headers=headers, json={})).status_code,
            "pause": (await remote.post(item + "/pause", headers=headers)).status_code,
            "resume": (await remote.post(item + "/resume", headers=headers)).status_code,
            "run": (await remote.post(item + "/run", headers=headers)).status_code,
        }

    assert set((await statuses(await plane.api.key("operator"))).values()) == {200, 202}
    viewer = await statuses(await plane.api.key("viewer"))
    assert (viewer.pop("get"), set(viewer.values())) == (200, {403})
    no_calls = [KeyGrant("developer"), KeyGrant("invoker", (), "deny")]
    kept = await statuses(await plane.api.key(grants=no_calls))
    assert kept == {"get": 200, "create": 403, "patch": 403, "pause": 200, "resume": 403, "run": 403}
    of_another = await plane.api.key("operator", functions=["g"])
    found = await statuses(of_another)
    assert (found.pop("create"), set(found.values())) == (403, {404})
    assert (await plane.api.remote.get("/schedules", headers={"X-API-Key": of_another})).json()["items"] == []


async def test_another_scope_sees_nothing(plane: Plane) -> None:
    """DB5: equal names in two tenants have nothing to do with each other."""
    made = await plane.create(name="a")
    await plane.api.tenant("acme")
    await function(plane.stage.db, "f", Scope("acme"))
    there = {"X-Nova-Tenant": "acme"}
    twin = await plane.client.post(PATH, json={"cron_expression": "@daily", "name": "a"}, headers=there)
    assert twin.status_code == 201
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/run"), ("POST", "/pause"), ("GET", "/runs")):
        answer = await plane.client.request(method, f"/schedules/{made['id']}{path}", headers=there)
        problem(answer, 404, "not_found")
    assert [i["id"] for i in (await plane.client.get("/schedules", headers=there)).json()["items"]] == [
        twin.json()["id"]
    ]


async def test_changes_are_in_the_audit_trail(plane: Plane) -> None:
    made = await plane.create(name="a")
    await plane.patch(made, jitter_s=1)
    await plane.post(f"/schedules/{made['id']}/pause")
    await plane.post(f"/schedules/{made['id']}/run", 202)
    await plane.client.delete(f"/schedules/{made['id']}")
    trail = [row["action"] for row in await plane.api.audit()]
    assert trail == ["schedule.create", "schedule.update", "schedule.pause", "schedule.run", "schedule.delete"]


async def test_a_patch_of_other_fields_keeps_the_next_instant(plane: Plane) -> None:
    """An interval goes on in its own steps."""
    made = await plane.create(cron_expression="@every 1h")
    plane.stage.hand.move(60)
    changed = await plane.patch(made, overlap_policy="allow", enabled=True)
    assert changed["next_run_at"] == made["next_run_at"] == "2026-11-22T13:00:00Z"
