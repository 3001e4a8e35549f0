"""Webhooks: who is let in, that each delivery is taken once, and what the sender is told."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook
from starlette.responses import PlainTextResponse

from nova.config import RateLimitSettings, Settings, Tier
from nova.domain.identity import Scope
from nova.errors import FunctionError
from nova.events.accept import Queue
from nova.events.triggers.webhook import Desk
from nova.execution.idempotent import IdempotentInvoker
from nova.gateway.front import Front
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.idempotency import IdempotencyStore
from nova.store.triggers import TriggerStore
from nova.work.notices import Notices
from tests.control.support import problem
from tests.events.support import Calls, failing, function, result, tenant
from tests.events.triggers.support import Counted, Plane, Topics, Workflows, planed, until
from tests.http.harness import client_of

pytestmark = pytest.mark.anyio
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
BODY = b'{"id": "evt_1", "event_id": "Ev1", "n": 1}'


@dataclass
class Gate:
    """The front with its desk for webhooks."""

    plane: Plane
    http: httpx.AsyncClient
    calls: Calls
    topics: Topics
    workflows: Workflows
    counted: Counted
    desk: Desk

    async def hook(self, name: str = "t", *, target: str = "f", **config: Any) -> dict[str, Any]:
        members = config.pop("members", {})
        return await self.plane.create(name=name, type="webhook", target=target, config=config, **members)

    async def post(self, headers: Mapping[str, Any], body: bytes = BODY, path: str = "/hooks/t") -> httpx.Response:
        return await self.http.post(path, content=body, headers=headers)

    async def jobs(self) -> list[Any]:
        return await self.plane.db.fetch("SELECT * FROM async_invocations ORDER BY id")


@asynccontextmanager
async def gate_of(
    database: Database, calls: Calls | None = None, settings: Settings | None = None
) -> AsyncIterator[Gate]:
    calls, topics, workflows, counted = calls or Calls(), Topics(), Workflows(), Counted()
    async with planed(database, settings) as plane, ServiceGroup() as group:
        guards = plane.api.guards
        notices = await group.start(Notices(database))
        queue = await group.start(Queue(database, notices))
        invoker = await group.start(IdempotentInvoker(calls, IdempotencyStore(database)))
        desk = Desk(
            TriggerStore(database),
            guards.listener,
            invoker,
            queue,
            guards.settings.limits,
            publisher=topics,
            starter=workflows,
            events=counted,
        )
        await group.start(desk)
        behind = PlainTextResponse("management")
        front = Front(invoker, guards.door, guards.audit, behind, limits=guards.settings.limits, hooks=desk)
        async with client_of(front, "203.0.113.7", "nova.example") as http:
            yield Gate(plane, http, calls, topics, workflows, counted, desk)


@pytest.fixture
async def gate(database: Database) -> AsyncIterator[Gate]:
    await function(database)
    async with gate_of(database) as opened:
        yield opened


def mac(body: bytes, secret: str = "s3cret") -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def standard(now: datetime, delivery: str = "msg_1", body: bytes = BODY) -> dict[str, str]:
    signature = Webhook(SECRET).sign(delivery, now.replace(tzinfo=UTC), body.decode())
    return {"webhook-id": delivery, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}


def github(_now: datetime, body: bytes = BODY) -> dict[str, str]:
    return {"X-Hub-Signature-256": f"sha256={mac(body)}", "X-GitHub-Delivery": "d-1", "X-GitHub-Event": "push"}


def stripe(now: datetime, body: bytes = BODY) -> dict[str, str]:
    stamp = str(int(now.timestamp()))
    return {"Stripe-Signature": f"t={stamp},v1={'0' * 64},v1={mac(stamp.encode() + b'.' + body)}"}


def slack(now: datetime, body: bytes = BODY) -> dict[str, str]:
    stamp = str(int(now.timestamp()))
    signature = mac(b"v0:" + stamp.encode() + b":" + body)
    return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={signature}"}


def signed(_now: datetime, body: bytes = BODY) -> dict[str, str]:
    return {"X-Own": mac(body)}


SCHEMES: list[tuple[str, dict[str, Any], Any, str, bool]] = [
    ("standard", {"secret": SECRET}, standard, "webhook-signature", True),
    ("github", {"secret": "s3cret"}, github, "X-Hub-Signature-256", False),
    ("stripe", {"secret": "s3cret"}, stripe, "Stripe-Signature", True),
    ("slack", {"secret": "s3cret"}, slack, "X-Slack-Signature", True),
    ("hmac", {"secret": "s3cret", "header": "X-Own"}, signed, "X-Own", False),
]


@pytest.mark.parametrize(("scheme", "config", "sign", "header", "timed"), SCHEMES, ids=[one[0] for one in SCHEMES])
async def test_a_signed_delivery_is_taken_once(
    gate: Gate, scheme: str, config: dict[str, Any], sign: Any, header: str, timed: bool
) -> None:
    """EV19: refuses a missing, wrong, old or repeated signature."""
    made = await gate.hook(scheme=scheme, **config)
    assert made["config"]["secret"] == "***"
    now = datetime.now(UTC)
    headers = sign(now)
    accepted = await gate.post(headers)
    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued"), accepted.text
    (job,) = await gate.jobs()
    assert str(job["id"]) == accepted.json()["invocation_id"]
    assert (job["source"], job["caller"], job["max_attempts"]) == ("trigger:t", "operator", 3)
    event = job["payload"]
    assert (event["type"], event["novatrigger"], event["data"]["body"]["n"]) == ("nova.trigger.webhook", "t", 1)
    assert (event["data"]["method"], event["data"]["path"]) == ("POST", "/hooks/t")

    problem(await gate.post(headers), 409, "duplicate_request")
    if timed:  # sent again by its sender, it has another time in it and the same id
        problem(await gate.post(sign(now - timedelta(seconds=5))), 409, "duplicate_request")
        old = sign(now - timedelta(seconds=400))
        problem(await gate.post(old, BODY), 401, "unauthenticated")
        problem(await gate.post(sign(now + timedelta(seconds=400))), 401, "unauthenticated")
    problem(await gate.post({}), 401, "unauthenticated")
    problem(await gate.post(headers, BODY.replace(b"1", b"2")), 401, "unauthenticated")
    for wrong in ("", "v1,", "v1,!!", "nonsense", "sha256=", "é", headers[header][:-1] + "?"):
        problem(await gate.post({**headers, header: wrong.encode()}), 401, "unauthenticated")
    assert len(await gate.jobs()) == 1
    assert {status for _, status in gate.counted.events} == {"accepted", "duplicate", "refused"}


async def test_tolerance_basic_and_nothing_at_all(gate: Gate) -> None:
    await gate.hook(scheme="stripe", secret="s3cret", tolerance_s=1000)
    assert (await gate.post(stripe(datetime.now(UTC) - timedelta(seconds=400)))).status_code == 202

    await gate.hook("basic", scheme="basic", secret="me:päss")
    known = {"Authorization": "Basic " + base64.b64encode("me:päss".encode()).decode()}
    for _ in range(2):
        assert (await gate.post(known, path="/hooks/basic")).status_code == 202
    for wrong in (
        {},
        {"Authorization": "Basic bWU6cGFzcw=="},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic ?"},
    ):
        problem(await gate.post(wrong, path="/hooks/basic"), 401, "unauthenticated")

    await gate.hook("open", scheme="none")
    answer = await gate.http.put("/hooks/open?a=1&b=2", content=b"not json", headers={"Cookie": "c", "X-A": "1"})
    assert answer.status_code == 202
    data = (await gate.jobs())[-1]["payload"]["data"]
    assert (data["method"], data["query"], data["body"]) == ("PUT", "a=1&b=2", {"b64": "bm90IGpzb24="})
    assert data["headers"]["x-a"] == "1"
    assert "cookie" not in data["headers"]
    assert all("authorization" not in job["payload"]["data"]["headers"] for job in await gate.jobs())


async def test_slack_is_told_its_challenge_and_filters_hold(gate: Gate) -> None:
    await gate.hook(scheme="slack", secret="s3cret")
    body = b'{"type": "url_verification", "challenge": "c1"}'
    answer = await gate.post(slack(datetime.now(UTC), body), body)
    assert (answer.status_code, answer.json()) == (200, {"challenge": "c1"})
    await gate.hook("some", scheme="none", members={"filters": [{"exact": {"/body/kind": "good"}}]})
    for kind, status in (("bad", "filtered"), ("good", "queued")):
        answer = await gate.post({}, json.dumps({"kind": kind}).encode(), "/hooks/some")
        assert (answer.status_code, answer.json()["status"]) == (202, status)
    assert len(await gate.jobs()) == 1


async def test_a_sync_webhook_answers_with_what_the_function_returned(database: Database) -> None:
    """Once: the delivery is not run again, nor answered from memory."""

    async def script(call: Any) -> Any:
        return result(call, b'{"ok": true}')

    calls = Calls(script)
    async with gate_of(database, calls) as gate:
        await gate.hook(scheme="standard", secret=SECRET, response="sync", members={"qualifier": "blue"})
        headers = standard(datetime.now(UTC))
        answer = await gate.post(headers)
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        assert answer.headers["content-type"] == "application/json"
        problem(await gate.post(headers), 409, "duplicate_request")
        (call,) = calls.seen
        assert (call.function, call.qualifier, call.trigger, call.caller) == ("f", "blue", "trigger", "trigger:t")
        assert answer.headers["x-request-id"] == call.request_id
        calls.script = failing(FunctionError("ValueError", "secret inside"))
        failed = await gate.post(standard(datetime.now(UTC), "msg_2"))
        assert problem(failed, 502, "function_error")
        assert "inside" not in failed.text


async def test_topics_and_workflows_take_deliveries_once(gate: Gate) -> None:
    await gate.hook("a", target="orders.eu", scheme="github", secret="s3cret", members={"target_type": "topic"})
    await gate.hook("b", target="w", scheme="github", secret="s3cret", members={"target_type": "workflow"})
    headers = github(datetime.now(UTC))
    for status in (202, 409):
        assert (await gate.post(headers, path="/hooks/a")).status_code == status
    ((scope, topic, message), *_) = gate.topics.published
    assert (scope, topic, json.loads(message.payload)["body"]["n"]) == (Scope(), "orders.eu", 1)
    runs = [(await gate.post(headers, path="/hooks/b")).json() for _ in range(2)]
    assert runs == [{"status": "started", "run_id": "run-1"}] * 2
    assert len(gate.workflows.started) == 1


async def test_webhooks_are_found_by_their_scope_and_change_at_once(gate: Gate, database: Database) -> None:
    await tenant(database, "acme")
    await gate.plane.api.guards.directory.changed("acme")
    await function(database, scope=Scope("acme"))
    made = await gate.hook(scheme="none")
    problem(await gate.post({}, path="/t/acme/default/hooks/t"), 404, "not_found")
    gate.plane.client.headers["X-Nova-Tenant"] = "acme"
    await gate.hook(scheme="none")
    assert (await gate.post({}, path="/t/acme/default/hooks/t")).status_code == 202
    assert (await gate.post({"X-Nova-Tenant": "acme"}, path="/v1/hooks/t")).status_code == 202
    assert {row["tenant_id"] for row in await gate.jobs()} == {"acme"}
    problem(await gate.post({}, path="/t/nobody/default/hooks/t"), 404, "not_found")
    problem(await gate.post({}, path="/t/!/default/hooks/t"), 400, "scope_invalid")
    assert (await gate.post({}, path="/hooks/t/more")).text == "management"

    del gate.plane.client.headers["X-Nova-Tenant"]
    await gate.plane.post(f"/triggers/{made['id']}/pause")

    async def answers(status: int) -> bool:
        return (await gate.post({})).status_code == status

    await until(lambda: answers(503))
    assert (await gate.post({})).headers["retry-after"] == "60"
    await gate.plane.post(f"/triggers/{made['id']}/resume")
    await until(lambda: answers(202))
    await gate.plane.patch(made, name="renamed")
    await until(lambda: answers(404))
    assert (await gate.post({}, path="/hooks/renamed")).status_code == 202

    async def counted() -> bool:
        status = await gate.plane.status(made)
        return bool(status["state"] == "running" and status["received"] == status["processed"] >= 2)

    await until(counted)
    await database.run("UPDATE tenants SET status = 'suspended' WHERE id = 'acme'")
    await gate.plane.api.guards.directory.changed("acme")
    problem(await gate.post({}, path="/t/acme/default/hooks/t"), 403, "tenant_suspended")


async def test_sizes_and_rates_are_limited(database: Database) -> None:
    await function(database)
    limits = RateLimitSettings(enabled=True, tiers={"standard": Tier(requests_per_second=0.001, burst_size=2)})
    async with gate_of(database, settings=Settings(rate_limit=limits)) as gate:
        await gate.hook(scheme="none")
        problem(await gate.post({}, b"[" + b"1," * (600 << 10) + b"1]"), 413, "payload_too_large")
        assert (await gate.post({})).status_code == 202
        problem(await gate.post({}), 429, "rate_limited")
