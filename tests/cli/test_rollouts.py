"""orbit rollout, shadow, replay and the aliases' rules, with functions that really run, on both shapes of the platform."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Orbit
from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

GOOD = "def handler(event, context):\n    return {'version': 1, 'event': event}\n"
FAILING = "def handler(event, context):\n    raise ValueError('new trouble')\n"
SLOW = "import time\n\ndef handler(event, context):\n    time.sleep(0.06)\n    return {'version': 2}\n"
OTHER = "def handler(event, context):\n    return {'version': 2, 'event': event}\n"


@pytest.fixture
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


def two_versions(platform: Platform, name: str, second: str) -> None:
    """1 is live, 2 is published."""
    platform.deploy(name, GOOD)
    answer = platform.http.patch(f"/functions/{name}", json={"code": second, "deploy": "publish"})
    assert answer.status_code == 200, answer.text


def versions(platform: Platform, name: str, count: int, path: str = "invoke", **options: Any) -> Counter[str]:
    """Which versions that many calls ran."""
    answers = [platform.http.post(f"/functions/{name}/{path}", json={}, **options) for _ in range(count)]
    return Counter(answer.headers["x-nova-executed-version"] for answer in answers)


def runs_only(platform: Platform, name: str, version: str) -> None:
    """Within a second every process sends all calls there."""
    until(lambda: versions(platform, name, 3).keys() == {version}, f"all calls of {name} run {version}", 1.0)


def test_rollouts_are_judged_by_what_both_versions_do(platform: Platform, orbit: Orbit) -> None:
    """One fails, one is slow, one is good: two go back by themselves, one becomes live."""
    functions = {"ro-errors": FAILING, "ro-slow": SLOW, "ro-good": OTHER}
    for name, second in functions.items():
        two_versions(platform, name, second)
    judged = ("--min-samples", "5", "--steps", "50:0")
    guards = {"ro-errors": ("--max-errors", "20"), "ro-slow": ("--max-p95", "40"), "ro-good": ("--max-errors", "20")}
    for name in functions:
        told = orbit("rollout", "start", name, "--to", "2", *judged, *guards[name]).ok().out
        assert "moves from version 1 to 2" in told
    seen: dict[str, Counter[str]] = {name: Counter() for name in functions}

    def ended() -> bool:
        for name in functions:
            seen[name] += versions(platform, name, 4)
        return all(orbit("rollout", "status", name, "-o", "json").json["status"] != "running" for name in functions)

    until(ended, "the rollouts are decided")
    shown = {name: orbit("rollout", "status", name, "-o", "json").json for name in functions}
    assert {name: found["status"] for name, found in shown.items()} == {
        "ro-errors": "rolled_back",
        "ro-slow": "rolled_back",
        "ro-good": "promoted",
    }
    assert "failed, above 20 %" in shown["ro-errors"]["history"][-1]["reason"]
    assert "above 40 ms" in shown["ro-slow"]["history"][-1]["reason"]
    for name in functions:
        assert seen[name]["2"] >= 5, "judged by calls that the new version had"
    for name, version in (("ro-errors", "1"), ("ro-slow", "1"), ("ro-good", "2")):
        runs_only(platform, name, version)
    assert "rollback" in orbit("rollout", "status", "ro-slow").ok().out
    assert "promote 100 %" in orbit("rollout", "status", "ro-good", "--watch").ok().out
    assert orbit("rollout", "status", "ro-slow", "--watch").code == 1
    orbit("rollout", "start", "ro-slow", "--to", "2", "--steps", "100:600").ok()
    runs_only(platform, "ro-slow", "2")
    assert orbit("rollout", "pause", "ro-slow").ok().out.strip().endswith("is paused: 100 % on version 2")
    orbit("rollout", "resume", "ro-slow").ok()
    orbit("rollout", "abort", "ro-slow").ok()
    runs_only(platform, "ro-slow", "1")
    assert orbit("rollout", "abort", "ro-slow").code == 5


def test_copies_and_replays_show_what_another_version_says(platform: Platform, orbit: Orbit) -> None:
    two_versions(platform, "ro-copied", OTHER)
    assert "100 % of the calls" in orbit("shadow", "set", "ro-copied", "2", "--ignore", "/event").ok().out
    answer = platform.http.post("/functions/ro-copied/invoke", json={"n": 1})
    assert answer.json()["output"] == {"version": 1, "event": {"n": 1}}
    report: dict[str, Any] = {}

    def copied() -> bool:
        report.update(orbit("shadow", "report", "ro-copied", "-o", "json").json)
        return bool(report["compared"])

    until(copied, "the copy is compared")
    assert (report["differed"], report["matched"]) == (1, 0)
    [sample] = report["samples"]
    assert sample["request_id"] == answer.headers["x-request-id"]
    assert sample["differences"] == [{"path": "/version", "from": 1, "to": 2}]
    assert "/version" in orbit("shadow", "report", "ro-copied").ok().out
    orbit("shadow", "off", "ro-copied").ok()
    assert orbit("shadow", "report", "ro-copied").code == 3
    calls = platform.http.get("/functions/ro-copied/logs", params={"tail": 10}).json()["items"]
    assert len(calls) == 1, "a copy leaves no record"

    call_id = answer.headers["x-request-id"]
    shown = orbit("replay", call_id, "--version", "2").ok().out
    assert [line.split() for line in shown.splitlines() if line.startswith("/")] == [["/version", "1", "2"]]
    again = orbit("replay", call_id, "-o", "json").ok().json
    assert (again["same"], again["original"]["version"], again["replay"]["version"]) == (True, 1, 1)
    queued = orbit("replay", call_id, "--async").ok().out.split()[-1]
    job = orbit("async", "get", queued, "--wait", "20", "-o", "json").ok().json
    assert job["output"] == {"version": 1, "event": {"n": 1}}


def test_function_urls_and_payloads_choose_their_version(platform: Platform, orbit: Orbit) -> None:
    two_versions(platform, "ro-rules", OTHER)
    rules = ("--match", "query:beta=1:2", "--match", "header:X-Beta=yes:2")
    orbit("aliases", "set", "ro-rules", "prod", "--version", "1", *rules).ok()
    url = "/fn/ro-rules@prod"

    def of(path: str, **headers: str) -> str:
        return platform.http.get(path, headers=headers).headers["x-nova-executed-version"]

    assert (of(url), of(f"{url}?beta=1"), of(f"{url}?beta=2"), of(url, **{"X-Beta": "yes"})) == ("1", "2", "1", "2")
    invoked = {
        beta: platform.http.post(
            "/functions/ro-rules/invoke", params={"qualifier": "prod"}, headers={"X-Beta": beta}, json={}
        ).headers["x-nova-executed-version"]
        for beta in ("yes", "no")
    }
    assert invoked == {"yes": "2", "no": "1"}
    orbit(
        "aliases", "set", "ro-rules", "prod", "--weight", "1=50,2=50", "--sticky", "payload:/user", "--match", "-"
    ).ok()

    def at(user: int) -> str:
        query = {"qualifier": "prod"}
        answer = platform.http.post("/functions/ro-rules/invoke", params=query, json={"user": user})
        return answer.headers["x-nova-executed-version"]

    first = {user: at(user) for user in range(12)}
    assert set(first.values()) == {"1", "2"}
    assert {user: at(user) for user in first} == first
    orbit("aliases", "set", "ro-rules", "prod", "--sticky", "cookie:sid").ok()
    for sid, _ in itertools.product("ab", range(2)):
        assert of(url, Cookie=f"x=1; sid={sid}") == of(url, Cookie=f"sid={sid}")
