"""The routes of asynchronous invocations, behind the real binder and door."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from nova.api import asyncs as contract
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.errors import FunctionError
from nova.events.accepting import AcceptHandlers
from nova.events.asyncs import AsyncHandlers
from nova.events.webhook_secrets import WebhookSecrets
from nova.ids import new_id
from nova.store.db import Database
from tests.control.support import fields, problem
from tests.events.support import Calls, Nebula, failing, function, nebula, result
from tests.events.test_deliveries import receiver
from tests.http.harness import Api, management

pytestmark = pytest.mark.anyio
BROKEN = FunctionError("ValueError", "no good")
AT_ONCE = {"max_attempts": 1, "backoff_base_ms": 0, "backoff_max_ms": 0}


@dataclass
class Plane:
    nebula: Nebula
    api: Api

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    async def invoke(self, name: str = "f", **body: Any) -> str:
        answer = await self.client.post(f"/functions/{name}/invoke-async", json=body)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["invocation_id"]
        return job_id

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def job(self, job_id: str, wait_s: float = 20) -> Any:
        return await self.get(f"/async-invocations/{job_id}", wait_s=wait_s)

    async def post(self, path: str, **body: Any) -> Any:
        answer = await self.client.post(f"/async-invocations/{path}", json=body or None)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def serving(database: Database, calls: Calls | None = None, *, start: bool = True) -> AsyncIterator[Plane]:
    await function(database)
    async with nebula(database, calls, start=start) as queue:
        owners = [AcceptHandlers(queue.queue), AsyncHandlers(database, queue.endings, WebhookSecrets(database))]
        async with management(database, owners, contract.ROUTES) as api:
            yield Plane(queue, api)


async def test_a_call_is_accepted_run_and_answered(database: Database) -> None:
    async with serving(database) as plane:
        answer = await plane.client.post(
            "/functions/f/invoke-async",
            json={"payload": {"ü": [1, "x"]}, "qualifier": "3"},
            headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
        )
        assert answer.status_code == 202
        accepted = answer.json()
        assert accepted == {"invocation_id": accepted["invocation_id"], "status": "queued", "function": "f"}
        assert answer.headers["Location"] == f"/async-invocations/{accepted['invocation_id']}"
        job = await plane.get(answer.headers["Location"], wait_s=20)
        assert (job["status"], job["output"], job["payload"]) == ("succeeded", {"ü": [1, "x"]}, {"ü": [1, "x"]})
        assert (job["caller"], job["source"], job["qualifier"], job["trace_id"]) == ("operator", "api", "3", "a" * 32)
        (attempt,) = job["attempts"]
        assert attempt["request_id"] == job["request_id"]
        assert plane.nebula.calls.seen[0].qualifier == "3"
        assert plane.nebula.calls.seen[0].traceparent is not None


async def test_the_rules_of_a_call_are_kept(database: Database) -> None:
    async with serving(database, start=False) as plane:
        rules = {"max_attempts": 9, "backoff_base_ms": 5, "backoff_max_ms": 50, "max_age_s": 70}
        job = await plane.job(await plane.invoke(**rules), 0)
        assert {name: job[name] for name in rules} == rules
        default = await plane.job(await plane.invoke(), 0)
        assert {name: default[name] for name in rules} == {
            "max_attempts": 3,
            "backoff_base_ms": 1000,
            "backoff_max_ms": 60000,
            "max_age_s": 86400,
        }


async def test_a_job_waits_for_its_time(database: Database) -> None:
    async with serving(database) as plane:
        later = datetime.now(UTC) + timedelta(hours=1)
        for wish in ({"delay_s": 3600}, {"not_before": later.isoformat()}):
            job = await plane.job(await plane.invoke(**wish), 0.1)
            assert job["status"] == "queued"
            due = datetime.fromisoformat(job["next_run_at"])
            assert abs((due - later).total_seconds()) < 30
        both = await plane.client.post(
            "/functions/f/invoke-async", json={"delay_s": 1, "not_before": later.isoformat()}
        )
        assert fields(problem(both, 400, "validation_failed")) == ["not_before"]
        assert plane.nebula.calls.seen == []


async def test_a_repeated_key_is_the_first_job(database: Database) -> None:
    """EV5: the repetition answers 200 and says so; another payload is refused; the key expires."""
    async with serving(database) as plane:
        wish = {"payload": 1, "idempotency_key": "order-1", "idempotency_ttl_s": 100}
        first = await plane.invoke(**wish)
        await plane.job(first)
        again = await plane.client.post("/functions/f/invoke-async", json=wish)
        assert (again.status_code, again.headers["X-Idempotency-Status"]) == (200, "replay")
        assert again.json() == {"invocation_id": first, "status": "succeeded", "function": "f"}
        other = await plane.client.post("/functions/f/invoke-async", json={**wish, "payload": 2})
        problem(other, 422, "idempotency_conflict")
        await database.run("UPDATE idempotency_keys SET expires_at = expires_at - interval '101 s'")
        assert await plane.invoke(**wish) != first


async def test_the_key_may_come_as_a_header(database: Database) -> None:
    async with serving(database) as plane:
        first = await plane.invoke(payload=1, idempotency_key="order-1")
        key = {"Idempotency-Key": "order-1"}
        again = await plane.client.post("/functions/f/invoke-async", json={"payload": 1}, headers=key)
        assert again.json()["invocation_id"] == first
        other = {"payload": 1, "idempotency_key": "order-2"}
        answer = await plane.client.post("/functions/f/invoke-async", json=other, headers=key)
        assert fields(problem(answer, 400, "validation_failed")) == ["idempotency_key"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 101}, "max_attempts"),
        ({"backoff_base_ms": -1}, "backoff_base_ms"),
        ({"backoff_max_ms": 86_400_001}, "backoff_max_ms"),
        ({"max_age_s": 0}, "max_age_s"),
        ({"delay_s": -1}, "delay_s"),
        ({"not_before": "2100-01-01T00:00:00Z"}, "not_before"),
        ({"idempotency_key": "a b"}, "idempotency_key"),
        ({"idempotency_key": "x" * 257}, "idempotency_key"),
        ({"idempotency_key": "k", "idempotency_ttl_s": 700_000}, "idempotency_ttl_s"),
        ({"qualifier": "no such!"}, "qualifier"),
        ({"priority": "urgent"}, "priority"),
        ({"concurrency_key": ""}, "concurrency_key"),
        ({"concurrency_key": "a\nb"}, "concurrency_key"),
        ({"concurrency_key": "k", "concurrency_limit": 0}, "concurrency_limit"),
        ({"concurrency_limit": 2}, "concurrency_limit"),
        ({"debounce_s": 2}, "debounce_s"),
        ({"debounce_key": "k", "debounce_s": 0}, "debounce_s"),
        ({"debounce_key": "k", "debounce_max_s": 0}, "debounce_max_s"),
        ({"debounce_key": "k", "idempotency_key": "k"}, "debounce_key"),
        ({"debounce_key": "k", "delay_s": 1}, "debounce_key"),
        ({"callback_url": "ftp://example.org/"}, "callback_url"),
        ({"keep_s": 59}, "keep_s"),
    ],
)
async def test_bad_wishes_are_named(database: Database, body: dict[str, Any], field: str) -> None:
    async with serving(database, start=False) as plane:
        answer = await plane.client.post("/functions/f/invoke-async", json=body)
        assert fields(problem(answer, 400, "validation_failed")) == [field]


async def test_a_callback_is_told_of_either_end_and_signed(database: Database) -> None:
    async with receiver((204, {})) as hook, serving(database, Calls(failing(BROKEN))) as plane:
        wish = {"callback_url": hook.url, "payload": {"order": 7}}
        dead = await plane.invoke(**AT_ONCE, **wish)
        well = await plane.invoke(**wish)
        async with asyncio.timeout(20):
            while len(hook.got) < 2:
                await asyncio.sleep(0.01)
        secret = (await plane.get("/functions/f/webhook-secret"))["secret"]
    told = {}
    for _, headers, body in hook.got:
        event = Webhook(secret).verify(body, headers)
        told[event["data"]["invocation_id"]] = (
            event["type"],
            event["data"]["payload"],
            headers["webhook-id"] == event["id"],
        )
    assert told == {
        dead: ("nova.async.failed", {"order": 7}, True),
        well: ("nova.async.succeeded", {"order": 7}, True),
    }


async def test_jobs_are_steered_in_bulk(database: Database) -> None:
    await function(database, "g")
    async with serving(database) as plane:
        mine = [await plane.invoke(delay_s=3600, concurrency_key="k") for _ in range(3)]
        other = await plane.invoke(delay_s=3600)
        answer = await plane.client.post("/async-invocations/cancel-all", json={"function": "g"})
        assert answer.json() == {"cancelled": 0}
        later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        answer = await plane.client.post("/async-invocations/cancel-all", json={"since": later})
        assert answer.json() == {"cancelled": 0}
        answer = await plane.client.post("/async-invocations/cancel-all", json={"concurrency_key": "k", "until": later})
        assert answer.json() == {"cancelled": 3}
        assert {(await plane.job(job_id))["status"] for job_id in mine} == {"cancelled"}
        assert (await plane.job(other, 0.1))["status"] == "queued"
        answer = await plane.client.post("/async-invocations/retry-all", json={"status": ["dlq"]})
        assert answer.json() == {"retried": 0}
        answer = await plane.client.post("/async-invocations/retry-all", json={"function": "f", "max_attempts": 2})
        assert answer.json() == {"retried": 3}
        for job_id in mine:
            done = await plane.job(job_id)
            assert (done["status"], done["max_attempts"], done["concurrency_key"]) == ("succeeded", 2, "k")


async def test_the_states_of_a_job_can_be_watched_to_its_end(database: Database) -> None:
    async with serving(database, Calls(failing(BROKEN))) as plane:
        job = await plane.invoke(max_attempts=2, backoff_base_ms=900, priority="high")
        async with plane.client.stream("GET", f"/async-invocations/{job}/events") as answer:
            lines = [line async for line in answer.aiter_lines()]
        events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        states = [json.loads(line.removeprefix("data: "))["status"] for line in lines if line.startswith("data: ")]
        assert events[-1] == "end"
        assert set(events[:-1]) == {"status"}
        assert states[-2:] == ["succeeded", "succeeded"]
        assert states[0] in ("queued", "running")
        assert (await plane.job(job))["priority"] == "high"
        problem(await plane.client.get("/async-invocations/nothing/events"), 404, "not_found")


async def test_a_payload_over_a_mebibyte_and_an_unknown_function_are_refused(database: Database) -> None:
    async with serving(database, start=False) as plane:
        large = await plane.client.post("/functions/f/invoke-async", json={"payload": "x" * (1 << 20)})
        assert problem(large, 413, "payload_too_large")["limit_bytes"] == 1 << 20
        problem(await plane.client.post("/functions/ghost/invoke-async", json={}), 404, "not_found")
        problem(await plane.client.get("/functions/ghost/async-invocations"), 404, "not_found")
        assert (await plane.get("/async-invocations"))["items"] == []


async def test_lists_filter_and_page(database: Database) -> None:
    await function(database, "g")
    async with serving(database, Calls(failing(BROKEN))) as plane:
        dead = await plane.invoke(**AT_ONCE)
        await plane.job(dead)
        good = await plane.invoke("g")
        await plane.job(good)
        waiting = await plane.invoke("g", delay_s=600)

        async def ids(path: str = "/async-invocations", **query: Any) -> list[str]:
            return [item["id"] for item in (await plane.get(path, **query))["items"]]

        assert await ids() == [waiting, good, dead]
        assert await ids(status="dlq") == await ids("/async-invocations/dlq") == [dead]
        assert await ids(status="succeeded,queued") == [waiting, good]
        assert await ids(function="g", status="queued") == [waiting]
        assert await ids("/functions/g/async-invocations") == [waiting, good]
        assert await ids("/functions/f/async-invocations", status="queued") == []
        assert await ids("/async-invocations/dlq", function="g") == []
        middle = (await plane.job(good, 0))["created_at"]
        assert await ids(since=middle) == [waiting, good]
        assert await ids(until=middle) == await ids("/async-invocations/dlq", until=middle) == [dead]
        assert await ids("/async-invocations/dlq", since=middle) == []
        assert await ids("/functions/g/async-invocations", since=middle, until=middle) == []
        page = await plane.get("/async-invocations", limit=2)
        assert [item["id"] for item in page["items"]] == [waiting, good]
        rest = await plane.get("/async-invocations", limit=2, cursor=page["next_cursor"])
        assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == ([dead], None)
        bad = await plane.client.get("/async-invocations", params={"status": "dead"})
        assert fields(problem(bad, 400, "validation_failed")) == ["status"]
        problem(await plane.client.get("/async-invocations", params={"cursor": "x"}), 400, "invalid_cursor")


async def test_whoever_waits_is_answered_when_the_job_ends(database: Database) -> None:
    go = asyncio.Event()

    async def script(call: CallRequest) -> CallResult:
        await go.wait()
        return result(call, b"7")

    async with serving(database, Calls(script)) as plane:
        job_id = await plane.invoke()
        early = await plane.job(job_id, 0.05)
        assert (early["status"], early["output"], early["next_run_at"]) == ("running", None, None)
        waiting = asyncio.create_task(plane.job(job_id, 60))
        await asyncio.sleep(0.05)
        go.set()
        async with asyncio.timeout(10):
            assert (await waiting)["output"] == 7
        long = await plane.client.get(f"/async-invocations/{job_id}", params={"wait_s": 61})
        assert fields(problem(long, 400, "validation_failed")) == ["wait_s"]


async def test_a_dead_letter_is_retried_and_a_good_job_is_not(database: Database) -> None:
    async with serving(database, Calls(failing(BROKEN, BROKEN))) as plane:
        job_id = await plane.invoke(**AT_ONCE)
        assert (await plane.job(job_id))["status"] == "dlq"
        again = await plane.post(f"{job_id}/retry", max_attempts=2)
        assert (again["status"], again["max_attempts"], again["error"]) in [("queued", 2, None), ("running", 2, None)]
        job = await plane.job(job_id)
        assert (job["status"], job["attempt"], [entry["no"] for entry in job["attempts"]]) == (
            "succeeded",
            2,
            [1, 2, 3],
        )
        refused = await plane.client.post(f"/async-invocations/{job_id}/retry", json={})
        assert problem(refused, 409, "invalid_state")["detail"] == "the job has ended: succeeded"


async def test_a_paused_job_waits_until_it_is_resumed(database: Database) -> None:
    async with serving(database, start=False) as plane:
        job_id = await plane.invoke()
        assert (await plane.post(f"{job_id}/pause"))["paused"]
        await plane.nebula.runner.start()
        await plane.job(await plane.invoke())
        assert (await plane.job(job_id, 0))["status"] == "queued"
        assert not (await plane.post(f"{job_id}/resume"))["paused"]
        assert (await plane.job(job_id))["status"] == "succeeded"
        for verb in ("pause", "resume", "cancel"):
            problem(await plane.client.post(f"/async-invocations/{job_id}/{verb}"), 409, "invalid_state")
        await plane.nebula.runner.close()


async def test_a_paused_function_holds_what_is_queued_and_what_comes(database: Database) -> None:
    await function(database, "g")
    async with serving(database, start=False) as plane:
        first, alone = await plane.invoke(), await plane.invoke()
        await plane.post(f"{alone}/pause")
        assert await plane.post("functions/f/pause") == {"changed": 1}
        second = await plane.invoke()
        await plane.nebula.runner.start()
        await plane.job(await plane.invoke("g"))
        assert [(await plane.job(job_id, 0))["status"] for job_id in (first, second)] == ["queued", "queued"]
        assert (await plane.get("/async-invocations/summary"))["held"] == 3
        assert await plane.post("functions/f/resume") == {"changed": 2}
        for job_id in (first, second):
            assert (await plane.job(job_id))["status"] == "succeeded"
        assert (await plane.job(alone, 0))["status"] == "queued"
        problem(await plane.client.post("/async-invocations/functions/ghost/pause"), 404, "not_found")
        await plane.nebula.runner.close()


async def test_the_whole_queue_stands_still_when_the_platform_says_so(database: Database) -> None:
    async with serving(database) as plane:
        stop = await plane.client.put("/async-invocations/global-pause", json={"paused": True, "reason": "moving"})
        assert stop.status_code == 200, stop.text
        job_id = await plane.invoke()
        assert (await plane.job(job_id, 0.5))["status"] == "queued"
        gate = await plane.get("/async-invocations/global-pause")
        assert (gate["paused"], gate["reason"], gate["changed_by"]) == (True, "moving", "operator")
        key = await plane.api.key("admin")
        refused = await plane.api.remote.put(
            "/async-invocations/global-pause", json={"paused": False}, headers={"X-API-Key": key}
        )
        problem(refused, 403, "forbidden")
        await plane.client.put("/async-invocations/global-pause", json={"paused": False})
        assert (await plane.job(job_id))["status"] == "succeeded"


async def test_a_cancelled_job_is_over_and_can_be_deleted(database: Database) -> None:
    async with serving(database, start=False) as plane:
        job_id = await plane.invoke(idempotency_key="k")
        queued = await plane.client.delete(f"/async-invocations/{job_id}")
        problem(queued, 409, "invalid_state")
        assert (await plane.post(f"{job_id}/cancel"))["status"] == "cancelled"
        assert await database.fetch("SELECT id FROM work") == []
        assert (await plane.client.delete(f"/async-invocations/{job_id}")).status_code == 204
        problem(await plane.client.delete(f"/async-invocations/{job_id}"), 404, "not_found")
        assert await plane.invoke(idempotency_key="k") != job_id


async def test_dead_letters_are_retried_and_purged_by_filter(database: Database) -> None:
    await function(database, "g")
    late = FunctionError("TimeoutError", "too late")
    script = Calls(failing(BROKEN, late, BROKEN, BROKEN))
    async with serving(database, script) as plane:
        dead = []
        for name in ("f", "f", "g", "g"):
            dead.append(await plane.invoke(name, **AT_ONCE))
            assert (await plane.job(dead[-1]))["status"] == "dlq"
        middle = (await plane.job(dead[2], 0))["finished_at"]
        assert await plane.post("dlq/retry-all", error_contains="too late", max_attempts=4) == {
            "retried": 1,
            "total": 1,
        }
        job = await plane.job(dead[1])
        assert (job["status"], job["max_attempts"]) == ("succeeded", 4)
        assert await plane.post("dlq/retry-all", function="f", since=middle) == {"retried": 0, "total": 0}
        assert await plane.post("dlq/purge", since=middle, function="g", error_contains="ValueError") == {"purged": 2}
        assert await plane.post("dlq/retry-all", function="f") == {"retried": 1, "total": 1}
        await plane.job(dead[0])
        assert (await plane.get("/async-invocations/dlq"))["items"] == []


async def test_the_summary_counts(database: Database) -> None:
    async with serving(database, Calls(failing(BROKEN))) as plane:
        await plane.job(await plane.invoke(**AT_ONCE))
        await plane.job(await plane.invoke())
        await plane.invoke(delay_s=60)
        summary = await plane.get("/async-invocations/summary")
        numbers = {name: summary[name] for name in ("queued", "running", "held", "succeeded", "dlq", "cancelled")}
        assert numbers == {"queued": 1, "running": 0, "held": 0, "succeeded": 1, "dlq": 1, "cancelled": 0}
        assert summary["rates"]["enqueued_1m"] == pytest.approx(3 / 60)
        assert summary["rates"]["finished_5m"] == pytest.approx(2 / 300)
        assert summary["oldest_queued_s"] is None


async def test_a_key_sees_and_steers_the_jobs_of_its_functions_only(database: Database) -> None:
    await function(database, "g")
    async with serving(database, start=False) as plane:
        mine, other = await plane.invoke("f"), await plane.invoke("g")
        developer = {"X-API-Key": await plane.api.key("developer", ["f"])}
        viewer = {"X-API-Key": await plane.api.key("viewer")}
        remote = plane.api.remote
        listed = (await remote.get("/async-invocations", headers=developer)).json()["items"]
        assert [item["id"] for item in listed] == [mine]
        problem(await remote.get(f"/async-invocations/{other}", headers=developer), 404, "not_found")
        problem(await remote.post(f"/async-invocations/{other}/cancel", headers=developer), 404, "not_found")
        problem(await remote.post("/async-invocations/functions/g/pause", headers=developer), 403, "forbidden")
        problem(await remote.post("/functions/g/invoke-async", json={}, headers=developer), 403, "forbidden")
        purge = await remote.post("/async-invocations/dlq/purge", json={"function": "g"}, headers=developer)
        problem(purge, 403, "forbidden")
        problem(await remote.post(f"/async-invocations/{mine}/cancel", headers=viewer), 403, "forbidden")
        seen = (await remote.get(f"/async-invocations/{mine}", headers=viewer)).json()
        assert (seen["payload"], seen["output"]) == (None, None)
        problem(await remote.get(f"/async-invocations/{new_id()}", headers=viewer), 404, "not_found")
        problem(await remote.get("/async-invocations/x", headers=viewer), 404, "not_found")


async def test_another_tenant_sees_nothing(database: Database) -> None:
    async with serving(database, start=False) as plane:
        await plane.api.tenant("acme")
        await function(database, scope=Scope("acme"))
        job_id = await plane.invoke()
        key = {"X-API-Key": await plane.api.key("admin", tenant="acme")}
        remote = plane.api.remote
        assert (await remote.get("/async-invocations", headers=key)).json()["items"] == []
        problem(await remote.get(f"/async-invocations/{job_id}", headers=key), 404, "not_found")
        assert (await remote.post("/async-invocations/functions/f/pause", headers=key)).json() == {"changed": 0}
        assert (await remote.get("/async-invocations/summary", headers=key)).json()["queued"] == 0


async def test_the_secret_of_webhooks_stays_and_is_of_one_function(database: Database) -> None:
    await function(database, "g")
    async with serving(database, start=False) as plane:
        first = (await plane.get("/functions/f/webhook-secret"))["secret"]
        assert first.startswith("whsec_")
        assert (await plane.get("/functions/f/webhook-secret"))["secret"] == first
        assert (await plane.get("/functions/g/webhook-secret"))["secret"] != first
        problem(await plane.client.get("/functions/ghost/webhook-secret"), 404, "not_found")
        viewer = {"X-API-Key": await plane.api.key("viewer")}
        problem(await plane.api.remote.get("/functions/f/webhook-secret", headers=viewer), 403, "forbidden")
