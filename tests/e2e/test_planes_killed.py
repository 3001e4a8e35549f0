"""Planes are killed with SIGKILL while calls run, and started again: who needs one is told, nobody else notices anything."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any

from tests.e2e.load import load
from tests.e2e.misuse import Platform, until
from tests.e2e.planes import STOP_LIMIT_S, Plane, SixPlanes
from tests.e2e.test_faults_database import Database

WHO = """
import time, uuid
ME = uuid.uuid4().hex
def handler(seconds):
    time.sleep(seconds or 0)
    return ME
"""
BACKGROUND = ("corona", "nebula", "aurora")
NOTICED_S = 20
"""A worker's row is believed for 15 s, and what zenith has asked for 2 s."""
TAKEN_OVER_S = 5.0
SLACK_S = 5.0
"""What a busy machine may add."""


@contextmanager
def function(platform: Platform, name: str, code: str = WHO, **fields: object) -> Iterator[str]:
    """A function that is there, and warm, for a while; what its first call answered."""
    platform.deploy(name, code, **({"idle_ttl_s": 3600} | fields))
    try:
        yield platform.call(name)
    finally:
        until(lambda: platform.http.delete(f"/functions/{name}").status_code in (204, 404), "it is deleted")


@contextmanager
def second(planes: SixPlanes, plane: str) -> Iterator[Plane]:
    """Another process of the plane, ready."""
    another = planes.add(f"{plane}-2", plane)
    try:
        another.start()
        until(lambda: another.ready, f"a second {plane} is ready", 180)
        yield another
    finally:
        planes.remove(f"{plane}-2")


def test_without_nova_calls_go_on_and_management_says_when_to_come_again(planes: SixPlanes, platform: Platform) -> None:
    with function(platform, "steady"), load(planes.url, "steady") as running:
        until(lambda: len(running.calls) > 20, "calls run")
        planes.planes["nova"].kill()
        for method, path in (("GET", "/functions"), ("DELETE", "/functions/steady"), ("GET", "/schedules")):
            answer = platform.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable"), answer.text
            assert int(answer.headers["retry-after"]) >= 1
        until(lambda: platform.http.get("/health/ready").status_code == 503, "zenith is not ready without nova")
        assert planes.health()["nova"] == "down"
        assert platform.http.get("/health/live").status_code == 200
        killed = time.monotonic()
        until(lambda: running.well_since(killed) > 20, "calls go on")
        planes.heal()
        assert platform.http.get("/functions/steady").status_code == 200
    assert running.failed == []


def test_workers_that_die_are_told_of_and_calls_go_on(planes: SixPlanes, platform: Platform) -> None:
    with function(platform, "steady"), load(planes.url, "steady", callers=2) as running:
        for name in BACKGROUND:
            planes.planes[name].kill()
        until(lambda: {planes.health()[name] for name in BACKGROUND} == {"down"}, "zenith noticed", NOTICED_S + 20)
        assert platform.http.get("/health").json()["status"] == "degraded"
        assert platform.http.get("/health/ready").status_code == 200, "they do not decide"
        answer = platform.http.post("/functions/steady/invoke-async", json={"payload": 0})
        assert answer.status_code == 202, "what is to run later is accepted"
        assert platform.http.get("/functions/steady/logs").status_code == 200
        planes.heal()
        until(lambda: job(platform, answer.json()["invocation_id"])["status"] == "succeeded", "and done later")
    assert running.failed == []


def test_of_two_coronas_one_fires_and_the_other_takes_over(planes: SixPlanes, platform: Platform) -> None:
    with function(platform, "ticking"):
        created = platform.http.post("/functions/ticking/schedules", json={"cron_expression": "@every 1s", "input": 0})
        path = f"/schedules/{created.json()['id']}/runs"

        def instants() -> list[datetime]:
            items = platform.http.get(path, params={"limit": 100}).json()["items"]
            return sorted(datetime.fromisoformat(item["fired_at"]) for item in items if item["status"] == "fired")

        until(lambda: len(instants()) >= 2, "the first corona fires")
        with second(planes, "corona") as another:
            assert not another.said("takes charge", duty="schedules"), "two do not lead"
            before = instants()
            planes.planes["corona"].kill()
            until(lambda: len(instants()) > len(before) + 3, "the second fires")
            assert another.said("takes charge", duty="schedules")
            fired = instants()
            gaps = [(after - former).total_seconds() for former, after in pairwise(fired)]
            assert max(gaps) <= TAKEN_OVER_S + SLACK_S, gaps
            planes.heal()
            assert not planes.planes["corona"].said("takes charge", duty="schedules"), "it stands by now"


def test_what_a_killed_nebula_had_begun_is_done_by_another(planes: SixPlanes, platform: Platform) -> None:
    with function(platform, "slow", async_policy={"max_attempts": 5, "backoff_base_ms": 1}), second(planes, "nebula"):
        answers = [platform.http.post("/functions/slow/invoke-async", json={"payload": 2}) for _ in range(8)]
        ids = [answer.json()["invocation_id"] for answer in answers]
        until(lambda: all(job(platform, one)["status"] == "running" for one in ids), "they run")
        planes.planes["nebula"].kill()
        fresh = platform.http.post("/functions/slow/invoke-async", json={"payload": 0}).json()["invocation_id"]
        until(lambda: job(platform, fresh)["status"] == "succeeded", "the other one goes on at once")
        until(lambda: all(job(platform, one)["status"] == "succeeded" for one in ids), "and finishes the rest")


def test_warm_instances_outlive_zenith(planes: SixPlanes, platform: Platform) -> None:
    with function(platform, "steady") as instance:
        planes.planes["zenith"].kill()
        planes.heal()
        answer = platform.post("steady").json()
        assert (answer["output"], answer["cold_start"]) == (instance, False)


def test_a_killed_comet_costs_only_the_calls_it_had(planes: SixPlanes, platform: Platform) -> None:
    callers, lost = 6, 0
    with function(platform, "steady"), load(planes.url, "steady", callers=callers, event=0.05) as running:
        for name in ("comet", "comet-1"):
            until(lambda since=time.monotonic(): running.well_since(since) > 50, "calls run")
            failed = len(running.failed)
            planes.planes[name].kill()
            killed = time.monotonic()
            until(lambda since=time.monotonic(): running.well_since(since) > 50, "calls go on elsewhere")
            died = running.failed[failed:]
            assert {(call.status, call.code) for call in died} <= {(502, "instance_lost")}, died
            assert len(died) <= callers
            assert all(call.began <= killed + SLACK_S for call in died), "whoever calls later is served elsewhere"
            lost += len(died)
            planes.heal()
    assert lost, "the calls were on one of them"
    assert len(running.failed) == lost, "and nothing else was"


def test_calls_go_on_while_the_database_is_started_again(planes: SixPlanes, platform: Platform) -> None:
    database = Database(planes.data_dir)
    with function(platform, "steady"), load(planes.url, "steady") as running:
        until(lambda: len(running.calls) > 20, "calls run")
        former = database.kill()
        until(lambda: _replaced(database, former), "the database is back", 90)
        name = "afterwards"
        until(lambda: _deployed(platform, name), "management recovers")
        assert platform.call(name)
        platform.delete(name)
        planes.heal()
    assert running.failed == []


def test_a_second_zenith_on_the_port_says_so_and_ends(planes: SixPlanes, platform: Platform) -> None:
    twin = Plane("twin", planes.planes["zenith"].argv, planes.planes["zenith"].log.with_name("twin.log"))
    twin.start()
    assert twin.process is not None
    assert twin.process.wait(STOP_LIMIT_S) == 1
    port = planes.ports["zenith"]
    assert f"cannot listen on 127.0.0.1:{port}" in twin.tail()
    assert "Traceback" not in twin.tail()
    until(planes.well, "the first one serves on")


def job(platform: Platform, number: str) -> dict[str, Any]:
    found: dict[str, Any] = platform.http.get(f"/async-invocations/{number}").json()
    return found


def _replaced(database: Database, former: int) -> bool:
    try:
        return database.pid != former
    except (FileNotFoundError, ValueError):
        return False  # its file is being written


def _deployed(platform: Platform, name: str) -> bool:
    answer = platform.http.post("/functions", json={"name": name, "runtime": "python", "code": WHO})
    assert answer.status_code in (201, 409, 503), answer.text
    return answer.status_code in (201, 409)
