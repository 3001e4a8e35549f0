"""Calls that nobody waits for, as users have them, on both shapes of the platform."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

NAME = "later"
CODE = """
calls = 0
def handler(event):
    global calls
    calls += 1
    if event.get("fails", 0) >= calls:
        raise ValueError(f"call {calls}")
    calls = 0
    return event
"""
QUICK = {"max_attempts": 3, "backoff_base_ms": 1, "backoff_max_ms": 5}


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        platform.deploy(NAME, CODE, async_policy=QUICK, max_replicas=1)
        yield platform
        platform.delete(NAME)


def accept(platform: Platform, payload: object, status: int = 202, **fields: object) -> dict[str, Any]:
    answer = platform.http.post(f"/functions/{NAME}/invoke-async", json={"payload": payload} | fields)
    assert answer.status_code == status, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


def ended(platform: Platform, number: str) -> dict[str, Any]:
    """The job when it has ended."""
    answer = platform.http.get(f"/async-invocations/{number}", params={"wait_s": 20})
    job: dict[str, Any] = answer.json()
    assert job["finished_at"] is not None, job
    return job


def test_an_accepted_call_runs_and_its_result_is_kept(platform: Platform) -> None:
    job = ended(platform, accept(platform, {"text": "ü"})["invocation_id"])
    assert (job["status"], job["output"], job["attempt"], job["source"]) == ("succeeded", {"text": "ü"}, 1, "api")
    request = job["request_id"]
    until(lambda: platform.http.get(f"/invocations/{request}").status_code == 200, "the call has its record")
    record = platform.http.get(f"/invocations/{request}").json()
    assert (record["function"], record["trigger"]) == (NAME, "async")


def test_a_failing_call_is_tried_again_then_is_a_dead_letter_and_can_be_redriven(platform: Platform) -> None:
    job = ended(platform, accept(platform, {"fails": 2})["invocation_id"])
    assert (job["status"], job["attempt"]) == ("succeeded", 3), "the third attempt is well"
    assert [attempt["error"] and attempt["error"]["message"] for attempt in job["attempts"]] == [
        "call 1",
        "call 2",
        None,
    ]
    job = ended(platform, accept(platform, {"fails": 4}, max_attempts=2)["invocation_id"])
    assert (job["status"], job["attempt"], job["error"]["type"]) == ("dlq", 2, "ValueError")
    letters = platform.http.get("/async-invocations/dlq", params={"function": NAME}).json()["items"]
    assert job["id"] in [letter["id"] for letter in letters]
    redriven = platform.http.post(f"/async-invocations/{job['id']}/retry", json={"max_attempts": 5})
    assert redriven.status_code == 200, redriven.text
    assert ended(platform, job["id"])["status"] == "succeeded"


def test_one_key_is_one_job_and_a_queue_can_stand_still(platform: Platform) -> None:
    path = f"/async-invocations/functions/{NAME}"
    assert platform.http.post(f"{path}/pause").status_code == 200
    try:
        first = accept(platform, {"n": 1}, idempotency_key="once")
        again = accept(platform, {"n": 1}, status=200, idempotency_key="once")
        assert again["invocation_id"] == first["invocation_id"]
        assert platform.http.get("/async-invocations/summary").json()["held"] == 1
        job = platform.http.get(f"/async-invocations/{first['invocation_id']}").json()
        assert (job["status"], job["attempt"]) == ("queued", 0)
    finally:
        assert platform.http.post(f"{path}/resume").status_code == 200
    assert ended(platform, first["invocation_id"])["output"] == {"n": 1}
    assert accept(platform, {"n": 1}, status=200, idempotency_key="once")["status"] == "succeeded"


def test_a_call_with_a_key_is_answered_once_and_repeated_from_memory(platform: Platform) -> None:
    """Idempotency-Key on a call that somebody waits for; X-Nova-Invocation-Type Event on one that nobody does."""
    path = f"/functions/{NAME}/invoke"
    answers = [platform.http.post(path, json={"n": 2}, headers={"idempotency-key": "twice"}).json() for _ in range(2)]
    assert answers[0]["output"] == answers[1]["output"] == {"n": 2}
    assert (answers[0].get("deduplicated"), answers[1]["deduplicated"]) == (None, True)
    event = platform.http.post(path, json={"n": 3}, headers={"x-nova-invocation-type": "Event"})
    assert event.status_code == 202, event.text
    assert ended(platform, event.json()["invocation_id"])["output"] == {"n": 3}


def test_what_became_of_jobs_is_counted_whichever_process_ran_them(platform: Platform) -> None:
    ended(platform, accept(platform, {})["invocation_id"])

    def counted() -> bool:
        lines = platform.http.get("/metrics/prometheus").text.splitlines()
        jobs = [line for line in lines if line.startswith("nova_async_jobs_total{") and f'function="{NAME}"' in line]
        leaders = [line for line in lines if line.startswith("nova_leader{")]
        return any('status="succeeded"' in line for line in jobs) and len(leaders) > 0

    until(counted, "the series tell of the job, and of who leads")
