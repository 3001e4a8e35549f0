"""The API of subscriptions: what is checked, what is shown, who may, and that a change acts."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from nova.api.subscriptions import ROUTES
from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings
from nova.errors import FunctionError
from nova.events.bus.replaying import DeliveryHandlers
from nova.events.bus.subscriptions import SubscriptionHandlers
from nova.events.bus.trying import TryHandlers
from nova.security.egress import client
from nova.store.apikeys import KeyGrant
from nova.store.blobs import BlobStore
from nova.store.db import Database
from nova.store.functions import FunctionStore
from nova.store.topics import TopicStore
from nova.store.versions import VersionStore
from tests.events.bus.dispatching import Delivered, data, dispatching
from tests.events.bus.topics import topic
from tests.events.support import Calls, function, result
from tests.http.harness import Api, management

pytestmark = pytest.mark.anyio


@dataclass
class Desk:
    """The routes of subscriptions of the topic ``orders``, and what delivers."""

    api: Api
    bus: Delivered

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.api.client.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def create(self, name: str = "s", status: int = 201, **members: Any) -> Any:
        given = {"name": name, "type": "function", "function_name": "f", "backoff_base_ms": 20, **members}
        body = {key: value for key, value in given.items() if value is not None}
        return await self.call("POST", "/topics/orders/subscriptions", body, status)

    async def item(self, made: dict[str, Any]) -> Any:
        return await self.call("GET", f"/subscriptions/{made['id']}")

    async def deliveries(self, made: dict[str, Any], query: str = "") -> list[Any]:
        page = await self.call("GET", f"/subscriptions/{made['id']}/deliveries{query}")
        return list(page["items"])


@asynccontextmanager
async def desk_of(database: Database, calls: Calls | None = None) -> AsyncIterator[Desk]:
    await function(database)
    await topic(database)
    await topic(database, "graves")
    topics = TopicStore(database)
    functions, versions = FunctionStore(database), VersionStore(database, BlobStore(database))
    owners: list[object] = [
        SubscriptionHandlers(database, topics, functions, versions, SYSTEM_CLOCK),
        DeliveryHandlers(database, topics),
    ]
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(dispatching(database, calls))
        here = SimpleNamespace(invoker=bus.calls)
        owners.append(TryHandlers(database, here, lambda: client(EgressSettings(), timeout_s=5), None, SYSTEM_CLOCK))
        served = await stack.enter_async_context(management(database, owners, ROUTES))
        yield Desk(served, bus)


@pytest.fixture
async def desk(database: Database) -> AsyncIterator[Desk]:
    async with desk_of(database) as running:
        yield running


async def test_a_subscription_has_its_defaults_and_shows_how_far_it_is(desk: Desk) -> None:
    made = await desk.create(backoff_base_ms=None)
    assert made == await desk.item(made)
    assert (await desk.call("GET", "/topics/orders/subscriptions"))["items"] == [made]
    shown = {key: made[key] for key in made if key not in ("id", "created_at", "updated_at")}
    assert shown == {
        "name": "s",
        "topic": "orders",
        "type": "function",
        "function_name": "f",
        "workflow_name": None,
        "webhook_url": None,
        "consumer_group": "s",
        "enabled": True,
        "disabled_reason": None,
        "qualifier": None,
        "filters": [],
        "max_attempts": 3,
        "backoff_base_ms": 1000,
        "backoff_max_ms": 60000,
        "timeout_s": None,
        "max_inflight": 10,
        "rate_limit_per_sec": 0,
        "ordered": True,
        "on_dlq": "continue",
        "dead_letter_topic": None,
        "batch_size": 1,
        "batch_window_ms": 0,
        "webhook_method": "POST",
        "webhook_headers": {},
        "webhook_timeout_ms": 30000,
        "webhook_signing_secret": None,
        "lag": 0,
        "queued": 0,
        "dlq": 0,
        "expired": 0,
        "oldest_unacked_age_s": None,
        "last_acked_sequence": 0,
        "generation": 0,
        "created_by": "operator",
    }


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "no spaces"}, "name", ""),
    ({"type": "email"}, "type", ""),
    ({"function_name": None}, "function_name", "is what"),
    ({"webhook_url": "https://example.com/"}, "webhook_url", "type webhook"),
    ({"workflow_name": "w"}, "workflow_name", "type workflow"),
    ({"type": "webhook", "function_name": None, "webhook_url": "ftp://example.com"}, "webhook_url", "http"),
    ({"type": "webhook", "function_name": None, "webhook_url": "https://u:p@example.com"}, "webhook_url", "http"),
    ({"webhook_method": "PUT"}, "webhook_method", "type webhook"),
    ({"webhook_headers": {"a": "b"}}, "webhook_headers", "type webhook"),
    ({"qualifier": "77"}, "qualifier", "no version or alias"),
    ({"filters": [{"exact": {"type": 1}}]}, "filters.0.exact.type", "text"),
    ({"filters": [{"near": {"type": "a"}}]}, "filters.0.near", "is not one of"),
    ({"max_attempts": 0}, "max_attempts", ""),
    ({"backoff_base_ms": 100, "backoff_max_ms": 99}, "backoff_max_ms", "less than"),
    ({"timeout_s": 901}, "timeout_s", ""),
    ({"max_inflight": 0}, "max_inflight", ""),
    ({"rate_limit_per_sec": -1}, "rate_limit_per_sec", ""),
    ({"on_dlq": "stop"}, "on_dlq", ""),
    ({"dead_letter_topic": "nowhere"}, "dead_letter_topic", "does not exist"),
    ({"dead_letter_topic": "orders"}, "dead_letter_topic", "the topic itself"),
    ({"batch_size": 101}, "batch_size", ""),
    ({"batch_window_ms": 10}, "batch_window_ms", "batch_size"),
    ({"start": "middle"}, "start", ""),
    ({"cursor": 5}, "cursor", "no such field"),
]


async def test_bad_fields_are_refused_and_leave_nothing(desk: Desk) -> None:
    for members, field, text in BAD:
        refused = await desk.create(status=400, **members)
        assert refused["errors"][0]["field"] == field, members
        assert text in refused["errors"][0]["message"], members
    assert (await desk.create(status=404, function_name="nobody"))["code"] == "not_found"
    hook: dict[str, Any] = {"type": "webhook", "function_name": None, "webhook_url": "https://example.com/"}
    for header in ("Host", "webhook-id", "X-Nova-Topic"):
        refused = await desk.create(status=400, **hook, webhook_headers={header: "x"})
        assert refused["errors"][0]["field"] == f"webhook_headers.{header}"
    assert (await desk.create(status=400, **hook, max_inflight=101))["errors"][0]["field"] == "max_inflight"
    assert (await desk.create(status=400, **hook, batch_size=2))["errors"][0]["field"] == "batch_size"
    assert (await desk.create(status=400, **hook, webhook_signing_secret="whsec_short"))["code"] == "validation_failed"
    assert (await desk.call("GET", "/topics/orders/subscriptions"))["items"] == []


async def test_names_and_groups_are_unique_in_a_topic_and_lists_page(desk: Desk) -> None:
    made = [await desk.create(f"s{n}", consumer_group=f"g{n}") for n in range(3)]
    assert (await desk.create("s1", status=409))["code"] == "already_exists"
    assert (await desk.create("new", status=409, consumer_group="g1"))["code"] == "already_exists"
    await desk.call("PATCH", f"/subscriptions/{made[0]['id']}", {"name": "s1"}, 409)
    first = await desk.call("GET", "/topics/orders/subscriptions?limit=2")
    assert [item["name"] for item in first["items"]] == ["s2", "s1"]
    rest = await desk.call("GET", f"/topics/orders/subscriptions?limit=2&cursor={first['next_cursor']}")
    assert [item["name"] for item in rest["items"]] == ["s0"]
    await desk.call("GET", "/topics/orders/subscriptions?cursor=x", status=400)
    await desk.call("DELETE", f"/subscriptions/{made[0]['id']}", status=204)
    await desk.call("GET", f"/subscriptions/{made[0]['id']}", status=404)
    await desk.call("DELETE", f"/subscriptions/{made[0]['id']}", status=404)
    await desk.call("GET", "/topics/nowhere/subscriptions", status=404)


async def test_start_says_what_comes_first_and_a_pause_holds(desk: Desk) -> None:
    await desk.bus.publish(1, 2)
    late = await desk.create("late")
    early = await desk.create("early", start="earliest", enabled=False)
    assert (await desk.item(early))["lag"] == 2
    assert (await desk.item(early))["oldest_unacked_age_s"] >= 0
    await desk.bus.publish(3)
    await desk.bus.settled(late["id"], 1)
    assert [data(call) for call in desk.bus.calls.seen] == [3]
    resumed = await desk.call("POST", f"/subscriptions/{early['id']}/resume")
    assert resumed["enabled"]
    await desk.bus.settled(early["id"], 3)
    assert sorted(data(call) for call in desk.bus.calls.seen) == [1, 2, 3, 3]
    await desk.call("POST", f"/subscriptions/{early['id']}/pause")
    await desk.call("POST", f"/subscriptions/{late['id']}/pause")
    await desk.bus.noticed()
    await desk.bus.publish(4)
    assert (await desk.item(early))["lag"] == 1


async def test_a_patch_changes_what_it_names_and_acts_at_once(desk: Desk) -> None:
    made = await desk.create()
    await function(desk.bus.db, "g")
    path = f"/subscriptions/{made['id']}"
    changed = await desk.call(
        "PATCH", path, {"function_name": "g", "filters": [{"prefix": {"type": "order."}}], "max_attempts": 7}
    )
    assert (changed["function_name"], changed["max_attempts"], changed["max_inflight"]) == ("g", 7, 10)
    assert (await desk.call("PATCH", path, {"max_attempts": None, "name": "t"}))["max_attempts"] == 3
    await desk.bus.noticed()
    await desk.bus.publish("no", type="bill.made")
    await desk.bus.publish("yes", type="order.made")
    await desk.bus.settled(made["id"], 1)
    assert [(call.function, data(call)) for call in desk.bus.calls.seen] == [("g", "yes")]
    for body, field in (
        ({"name": None}, "name"),
        ({"function_name": None}, "function_name"),
        ({"type": "webhook"}, "type"),
    ):
        refused = await desk.call("PATCH", path, body, 400)
        assert refused["errors"][0]["field"] == field


async def test_only_who_may_call_the_target_may_make_it(desk: Desk) -> None:
    reader = {"X-API-Key": await desk.api.key("viewer")}
    grants = [KeyGrant("operator"), KeyGrant("operator", ("f",), "deny")]
    manager = {"X-API-Key": await desk.api.key(grants=grants)}
    made = await desk.create()
    path = f"/subscriptions/{made['id']}"
    assert (await desk.api.client.get(path, headers=reader)).status_code == 200
    for method, where in (("POST", path + "/pause"), ("DELETE", path), ("POST", path + "/dlq/retry-all")):
        assert (await desk.api.client.request(method, where, headers=reader)).status_code == 403
    assert (await desk.api.client.post(path + "/pause", headers=manager)).status_code == 200
    assert (await desk.api.client.post(path + "/resume", headers=manager)).status_code == 403
    body = {"name": "x", "type": "function", "function_name": "f"}
    made = await desk.api.client.post("/topics/orders/subscriptions", json=body, headers=manager)
    assert made.status_code == 403


async def test_a_trial_says_what_came_of_it_and_keeps_nothing(database: Database) -> None:
    broken = Breakable()
    async with desk_of(database, Calls(broken.script)) as desk:
        made = await desk.create(filters=[{"exact": {"/n": "1"}}])
        path = f"/subscriptions/{made['id']}/test"
        failed = await desk.call("POST", path, {"payload": {"n": 1}})
        assert (failed["status"], failed["error"], failed["fits"]) == ("failed", "ValueError: no", True)
        broken.heal()
        told = await desk.call("POST", path, {"payload": [2]})
        assert (told["status"], told["error"], told["fits"]) == ("succeeded", None, False)
        assert [data(call) for call in desk.bus.calls.seen] == [{"n": 1}, [2]]
        assert await desk.deliveries(made) == []
        hook = await desk.create("h", type="webhook", function_name=None, webhook_url="http://127.0.0.1:1/")
        told = await desk.call("POST", f"/subscriptions/{hook['id']}/test", {})
        assert (told["status"], "no public address" in told["error"]) == ("failed", True)
        grants = [KeyGrant("operator"), KeyGrant("operator", ("f",), "deny")]
        manager = {"X-API-Key": await desk.api.key(grants=grants)}
        assert (await desk.api.client.post(path, json={}, headers=manager)).status_code == 403


async def test_secrets_are_shown_once_and_rotate(desk: Desk) -> None:
    hook: dict[str, Any] = {"type": "webhook", "function_name": None, "webhook_url": "https://example.com/"}
    made = await desk.create(**hook)
    secret = made["webhook_signing_secret"]
    assert secret.startswith("whsec_")
    shown = (await desk.item(made))["webhook_signing_secret"]
    assert shown == f"whsec_…{secret[-4:]}"
    path, own = f"/subscriptions/{made['id']}", "whsec_" + "QUJD" * 11
    assert (await desk.call("PATCH", path, {"webhook_signing_secret": own}))["webhook_signing_secret"] == own
    fresh = (await desk.call("PATCH", path, {"webhook_signing_secret": None}))["webhook_signing_secret"]
    assert fresh not in (own, secret)
    patched = await desk.call("PATCH", path, {"webhook_headers": {"a": "1", "b": "2"}, "webhook_method": "PUT"})
    assert patched["webhook_signing_secret"] == f"whsec_…{fresh[-4:]}"
    assert (await desk.call("PATCH", path, {"webhook_headers": {"a": None}}))["webhook_headers"] == {"b": "2"}


async def test_dead_deliveries_are_shown_retried_skipped_and_purged(database: Database) -> None:
    broken = Breakable()
    async with desk_of(database, Calls(broken.script)) as desk:
        made = await desk.create(max_attempts=1, dead_letter_topic="graves")
        path = f"/subscriptions/{made['id']}"
        await desk.bus.publish(*range(5))
        await desk.bus.settled(made["id"], 5)
        dead = await desk.call("GET", "/topics/orders/dlq?limit=3")
        more = await desk.call("GET", f"/topics/orders/dlq?limit=3&cursor={dead['next_cursor']}")
        ids = [item["id"] for item in dead["items"] + more["items"]]
        assert len(set(ids)) == 5
        assert {item["failed_attempts"][0]["error"] for item in dead["items"]} == {"ValueError: no"}
        assert (await desk.item(made))["dlq"] == 5
        graves = await database.fetch(
            "SELECT headers::text AS h FROM event_messages m JOIN event_topics t"
            " ON t.id = m.topic_id WHERE t.name = 'graves'"
        )
        assert ["ValueError" in row["h"] for row in graves] == [True] * 5
        broken.heal()
        assert (await desk.call("POST", f"/deliveries/{ids[0]}/retry"))["status"] == "queued"
        assert (await desk.call("POST", f"/deliveries/{ids[1]}/skip"))["status"] == "skipped"
        await desk.bus.settled(made["id"], 1, "succeeded")
        for action in ("retry", "skip"):
            assert (await desk.call("POST", f"/deliveries/{ids[0]}/{action}", status=409))["code"] == "invalid_state"
        assert await desk.call("POST", path + "/dlq/retry-all") == {"retried": 3}
        await desk.bus.settled(made["id"], 4, "succeeded")
        broken.breaks()
        await desk.bus.publish(9)
        await desk.bus.settled(made["id"], 1, "dlq")
        assert [item["sequence"] for item in await desk.deliveries(made, "?status=dlq")] == [6]
        assert await desk.call("DELETE", path + "/dlq") == {"purged": 1}
        assert (await desk.item(made))["dlq"] == 0
        page = await desk.call("GET", path + "/deliveries?limit=2")
        assert [item["sequence"] for item in page["items"]] == [5, 4]
        page = await desk.call("GET", path + f"/deliveries?limit=2&cursor={page['next_cursor']}")
        assert [item["sequence"] for item in page["items"]] == [3, 2]
        for bad in ("x", f"{made['id']}-99-0", f"{made['id']}-1-99999999999"):
            await desk.call("GET", f"/deliveries/{bad}", status=404)
            await desk.call("POST", f"/deliveries/{bad}/retry", status=404)


class Breakable:
    """A function that fails until it is healed."""

    def __init__(self) -> None:
        self._broken = True

    def heal(self) -> None:
        self._broken = False

    def breaks(self) -> None:
        self._broken = True

    async def script(self, call: Any) -> Any:
        return result(call, error=FunctionError("ValueError", "no") if self._broken else None)
