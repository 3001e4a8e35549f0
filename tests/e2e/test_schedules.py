"""Functions that are called at times of their own, on both shapes of the platform."""

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

NAME = "ticking"


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        platform.deploy(NAME, "def handler(event):\n    return event\n")
        yield platform
        platform.delete(NAME)


def schedule(platform: Platform, expression: str, **fields: object) -> str:
    """Its id."""
    answer = platform.http.post(f"/functions/{NAME}/schedules", json={"cron_expression": expression} | fields)
    assert answer.status_code == 201, answer.text
    number: str = answer.json()["id"]
    return number


def runs(platform: Platform, number: str) -> list[dict[str, Any]]:
    """What became of each instant, oldest first."""
    items: list[dict[str, Any]] = platform.http.get(f"/schedules/{number}/runs").json()["items"]
    return items[::-1]


def test_a_function_is_called_every_second_until_its_schedule_is_paused(platform: Platform) -> None:
    number = schedule(platform, "@every 1s", input={"n": 7}, name="each-second")
    until(lambda: len(runs(platform, number)) >= 3, "it fires")
    paused = platform.http.post(f"/schedules/{number}/pause").json()
    assert (paused["enabled"], paused["next_run_at"]) == (False, None)
    fired = runs(platform, number)
    instants = [datetime.fromisoformat(run["scheduled_for"]) for run in fired]
    assert {(after - before).total_seconds() for before, after in pairwise(instants)} == {1.0}
    job = platform.http.get(f"/async-invocations/{fired[0]['invocation_id']}", params={"wait_s": 20}).json()
    assert (job["status"], job["output"], job["source"]) == ("succeeded", {"n": 7}, "schedule:each-second")
    assert len(runs(platform, number)) == len(fired), "a paused one fires no more"
    assert platform.http.delete(f"/schedules/{number}").status_code == 204
    assert platform.http.get(f"/schedules/{number}").status_code == 404


def test_a_schedule_can_be_fired_by_hand_and_looked_at_before(platform: Platform) -> None:
    preview = platform.http.get(
        "/schedules/preview",
        params={"cron": "30 2 * * *", "timezone": "Europe/Berlin", "n": 3, "after": "2027-03-27T00:00:00Z"},
    ).json()
    assert len(preview["instants"]) == 3
    number = schedule(platform, "30 2 29 2 *")
    run = platform.http.post(f"/schedules/{number}/run")
    assert run.status_code == 202, run.text
    job = platform.http.get(f"/async-invocations/{run.json()['invocation_id']}", params={"wait_s": 20}).json()
    assert job["status"] == "succeeded"
    assert job["output"]["specversion"] == "1.0", "without an input it gets an envelope"
    assert platform.http.delete(f"/schedules/{number}").status_code == 204


def test_what_cannot_be_a_schedule_is_refused_by_its_field(platform: Platform) -> None:
    for fields, wrong in (
        ({"cron_expression": "61 * * * *"}, "cron_expression"),
        ({"cron_expression": "@every 10ms"}, "cron_expression"),
        ({"cron_expression": "@daily", "timezone": "Mars/Olympus"}, "timezone"),
    ):
        answer = platform.http.post(f"/functions/{NAME}/schedules", json=fields)
        assert answer.status_code in (400, 422), answer.text
        assert wrong in answer.text
