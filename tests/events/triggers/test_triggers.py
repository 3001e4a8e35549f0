"""The API of triggers: what is checked, what is shown, who may."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from nova.events.triggers.registry import without_password
from nova.store.apikeys import KeyGrant
from nova.store.db import Database
from tests.control.support import fields, problem
from tests.events.triggers.support import Plane, planed

pytestmark = pytest.mark.anyio
REDIS = {"url": "redis://me:hidden@localhost:6379/0", "stream": "s", "group": "g"}


@pytest.fixture
async def plane(database: Database) -> AsyncIterator[Plane]:
    async with planed(database) as running:
        yield running


async def test_a_trigger_has_its_defaults_and_hides_its_password(plane: Plane) -> None:
    made = await plane.create(type="redis_stream", config=REDIS)
    assert made == await plane.get(f"/triggers/{made['id']}")
    assert {name: made[name] for name in made if name not in ("id", "created_at", "updated_at")} == {
        "name": "t",
        "type": "redis_stream",
        "target_type": "function",
        "target": "f",
        "qualifier": None,
        "enabled": True,
        "config": {"url": "redis://me:***@localhost:6379/0", "stream": "s", "group": "g"},
        "filters": [],
        "batch": {"size": 1, "window_ms": 0},
        "max_inflight": 10,
        "on_error": "dlq",
        "max_attempts": 3,
        "state": "starting",
        "created_by": "operator",
    }
    assert await plane.status(made) == {
        "state": "starting",
        "last_error": None,
        "lag": None,
        "received": 0,
        "processed": 0,
        "failed": 0,
        "last_event_at": None,
        "node": None,
    }
    audited = await plane.api.audit()
    assert [row["action"] for row in audited] == ["trigger.create"]
    assert "hidden" not in str(audited)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"type": "kafka"}, "type"),
    ({"name": "no spaces"}, "name"),
    ({"target": "no spaces"}, "target"),
    ({"target": "dots.are.for.topics"}, "target"),
    ({"target_type": "webhook"}, "target_type"),
    ({"qualifier": "9lives!"}, "qualifier"),
    ({"target_type": "topic", "qualifier": "live"}, "qualifier"),
    ({"target_type": "topic", "on_error": "dlq"}, "on_error"),
    ({"target_type": "workflow", "batch": {"size": 2}}, "batch.size"),
    ({"batch": {"size": 0}}, "batch.size"),
    ({"batch": {"size": 501}}, "batch.size"),
    ({"batch": {"size": 1, "window_ms": 5}}, "batch.window_ms"),
    ({"batch": {"size": 2, "window_ms": 60_001}}, "batch.window_ms"),
    ({"batch": {"size": 500}, "max_inflight": 21}, "max_inflight"),
    ({"max_inflight": 0}, "max_inflight"),
    ({"max_attempts": 101}, "max_attempts"),
    ({"on_error": "ignore"}, "on_error"),
    ({"enabled": 1}, "enabled"),
    ({"filters": [{"like": {}}]}, "filters.0"),
    ({"config": {"stream": "s", "group": "g"}}, "config.url"),
    ({"config": {**REDIS, "nothing": 1}}, "config.nothing"),
    ({"config": {**REDIS, "stream": 7}}, "config.stream"),
    ({"state": "running"}, "state"),
    ({"type": "webhook", "config": {}}, "config"),
    ({"type": "webhook", "config": {"scheme": "none", "secret": "x"}}, "config"),
    ({"type": "webhook", "config": {"scheme": "none"}, "max_inflight": 5}, "max_inflight"),
    ({"type": "webhook", "config": {"scheme": "none"}, "batch": {"size": 5}}, "batch.size"),
    ({"type": "webhook", "config": {"scheme": "none"}, "on_error": "drop"}, "on_error"),
]


async def test_bad_fields_are_refused_and_leave_nothing(plane: Plane) -> None:
    """On creation and on change; a type that is not there is refused by its name."""
    made = await plane.create(type="redis_stream", config=REDIS)
    for members, field in BAD:
        body = {"name": "bad", "type": "redis_stream", "target": "f", "config": REDIS, **members}
        answer = await plane.client.post("/triggers", json=body)
        assert answer.status_code == 400, members
        assert any(found.startswith(field) for found in fields(answer.json())), (members, answer.text)
        if not {"type", "name"} & members.keys():
            answer = await plane.client.patch(f"/triggers/{made['id']}", json=members)
            assert answer.status_code == 400 or members == {"config": {"stream": "s", "group": "g"}}, members
    for name in ("name", "target", "config"):
        answer = await plane.client.patch(f"/triggers/{made['id']}", json={name: None})
        assert fields(answer.json()) == [name]
    assert len((await plane.get("/triggers"))["items"]) == 1


async def test_a_change_merges_and_keeps_what_it_does_not_name(plane: Plane) -> None:
    made = await plane.create(
        type="redis_stream",
        config=REDIS,
        qualifier="blue",
        batch={"size": 5, "window_ms": 100},
        filters=[{"exact": {"type": "x"}}],
        max_attempts=7,
    )
    shown = made["config"]["url"]
    changed = await plane.patch(made, config={"url": shown, "stream": "other"}, batch={"window_ms": 50}, filters=[])
    assert (changed["config"]["stream"], changed["batch"]) == ("other", {"size": 5, "window_ms": 50})
    assert (changed["filters"], changed["max_attempts"]) == ([], 7)
    assert await _stored(plane, made) == {**REDIS, "stream": "other"}
    changed = await plane.patch(made, config={"url": "redis://localhost"}, qualifier=None, batch=None, name="u")
    assert (changed["name"], changed["qualifier"], changed["batch"]) == ("u", None, {"size": 1, "window_ms": 0})
    assert (await _stored(plane, made))["url"] == "redis://localhost"
    refused = await plane.client.patch(f"/triggers/{made['id']}", json={"config": {"url": shown}})
    assert fields(refused.json()) == ["config.url"]
    assert (await plane.patch(made, target_type="topic", target="orders.eu"))["on_error"] == "retry"
    assert (await plane.patch(made, on_error="drop", max_inflight=3, enabled=False))["state"] == "stopped"


async def test_names_are_unique_and_dry_runs_write_nothing(plane: Plane) -> None:
    body = {"name": "t", "type": "redis_stream", "target": "f", "config": REDIS}
    answer = await plane.client.post("/triggers?dry_run=true", json=body)
    assert (answer.status_code, answer.json()["name"]) == (200, "t")
    assert (await plane.get("/triggers"))["items"] == []
    made, other = await plane.create(**body), await plane.create(**{**body, "name": "u"})
    problem(await plane.client.post("/triggers", json=body), 409, "already_exists")
    taken = await plane.client.patch(f"/triggers/{other['id']}", json={"name": "t"})
    problem(taken, 409, "already_exists")
    would_be = await plane.client.patch(f"/triggers/{made['id']}?dry_run=true", json={"target": "g"})
    assert would_be.json()["target"] == "g"
    assert (await plane.get(f"/triggers/{made['id']}"))["target"] == "f"
    assert (await plane.client.delete(f"/triggers/{made['id']}")).status_code == 204
    assert (await plane.client.delete(f"/triggers/{made['id']}")).status_code == 404
    assert (await plane.client.get("/triggers/nonsense")).status_code == 404


async def test_lists_filter_and_page(plane: Plane) -> None:
    for n in range(5):
        await plane.create(name=f"r{n}", type="redis_stream", config=REDIS, target=f"f{n % 2}", enabled=n != 0)
    await plane.create(name="hook", type="webhook", config={"scheme": "none"})
    first = await plane.get("/triggers?limit=4")
    rest = await plane.get(f"/triggers?limit=4&cursor={first['next_cursor']}")
    names = [one["name"] for one in first["items"] + rest["items"]]
    assert names == ["hook", "r4", "r3", "r2", "r1", "r0"]
    assert rest["next_cursor"] is None
    assert [one["state"] for one in first["items"]] == ["running", "starting", "starting", "starting"]
    for query, count in (("type=webhook", 1), ("target=f1", 2), ("enabled=false", 1), ("enabled=true&target=f0", 2)):
        assert len((await plane.get(f"/triggers?{query}"))["items"]) == count, query


async def test_who_makes_a_trigger_must_be_allowed_to_call_its_target(plane: Plane) -> None:
    """And sees only triggers of functions that are his."""
    other = await plane.create(name="other", type="redis_stream", config=REDIS, target="g")
    body = {"name": "mine", "type": "redis_stream", "target": "f", "config": REDIS}
    only_manage = await plane.api.key(grants=[KeyGrant("viewer", ()), KeyGrant("operator", ("f",))])
    headers = {"X-API-Key": only_manage}
    made = await plane.api.remote.post("/triggers", json=body, headers=headers)
    assert made.status_code == 201
    assert made.json()["created_by"].startswith("key:")
    for members in ({"target": "g"}, {"target_type": "topic", "target": "t"}):
        answer = await plane.api.remote.post("/triggers", json=body | {"name": "no"} | members, headers=headers)
        problem(answer, 403, "forbidden")
    path = f"/triggers/{other['id']}"
    assert (await plane.api.remote.get(path, headers=headers)).status_code == 200
    for answer in (
        await plane.api.remote.patch(path, json={"target": "f"}, headers=headers),
        await plane.api.remote.delete(path, headers=headers),
        await plane.api.remote.post(f"{path}/test", headers=headers),
    ):
        problem(answer, 403, "forbidden")
    narrow = {"X-API-Key": await plane.api.key("operator", functions=["f"])}
    listed = (await plane.api.remote.get("/triggers", headers=narrow)).json()["items"]
    assert [one["name"] for one in listed] == ["mine"]
    assert (await plane.api.remote.get(path, headers=narrow)).status_code == 404
    invoker = {"X-API-Key": await plane.api.key("invoker")}
    assert (await plane.api.remote.get("/triggers", headers=invoker)).status_code == 403


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://u:p@h:1/v?x=1", "amqp://u:***@h:1/v?x=1"),
        ("nats://token@h", "nats://***@h"),
        ("redis://h/0", "redis://h/0"),
        ("amqp://u:p/w#d?@h/v", "amqp://u:***@h/v"),
        ("postgresql://h/db?user=u&password=p", "postgresql://h/db?***"),
        ("host=h password=p", "***"),
        ("mqtt://u:p:q@h", "mqtt://u:***@h"),
    ],
)
async def test_passwords_in_addresses_are_masked(url: str, shown: str) -> None:
    assert without_password(url) == shown


async def _stored(plane: Plane, made: dict[str, Any]) -> dict[str, Any]:
    row = await plane.db.one("SELECT config FROM triggers WHERE id = %(id)s", id=made["id"])
    assert row is not None
    config: dict[str, Any] = row["config"]
    return config
