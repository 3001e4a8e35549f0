"""Why did it fail? Every way to fail has a name of its own, in the answer, in the record and in what the platform says before a
call."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from nova.cli.orbit import app
from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

NAME = "fails"
HURRIED = "hurried"
CODE = """
import os, time
def handler(event):
    match event["how"]:
        case "raise": raise ValueError("as asked")
        case "exit": os._exit(3)
        case "kill": os.kill(os.getpid(), 9)
        case "sleep": time.sleep(60)
        case "eat": return len(bytearray(os.urandom(1)) * (400 << 20))
        case "set": return {1, 2}
        case "large": return "x" * (7 << 20)
    return "well"
"""
SLEEPS = json.dumps({"how": "sleep"})


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        platform.deploy(NAME, CODE, timeout_s=60)
        platform.deploy(HURRIED, CODE, timeout_s=1)
        platform.deploy("broken", "import nothing_of_this_name\ndef handler(event): return 1\n")
        yield platform
        for name in (NAME, HURRIED, "broken"):
            platform.delete(name)


def outcome(platform: Platform, request_id: str) -> str:
    """As the call's record says it."""
    until(lambda: platform.http.get(f"/invocations/{request_id}").status_code == 200, "the call has its record")
    record = platform.http.get(f"/invocations/{request_id}").json()
    parts = record["queue_ms"] + record["boot_ms"] + record["init_ms"] + record["handler_ms"]
    assert parts == pytest.approx(record["duration_ms"], abs=0.1)
    found: str = record["outcome"]
    return found


@pytest.mark.parametrize(
    ("how", "status", "name"),
    [
        ("well", 200, "success"),
        ("raise", 200, "handler_error"),
        ("exit", 200, "crash"),
        ("kill", 200, "crash"),
        ("eat", 200, "out_of_memory"),
        ("set", 200, "invalid_output"),
        ("large", 200, "output_too_large"),
        ("sleep", 504, "timeout"),
    ],
)
def test_each_way_to_fail_has_a_name_of_its_own(platform: Platform, how: str, status: int, name: str) -> None:
    function = HURRIED if name == "timeout" else NAME
    answer = platform.post(function, {"how": how})
    assert answer.status_code == status, answer.text
    request_id = answer.headers["x-request-id"]
    assert outcome(platform, request_id) == name
    listed = platform.http.get("/invocations", params={"outcome": name, "function": function}).json()["items"]
    assert request_id in [call["id"] for call in listed]
    logged = platform.http.get(f"/functions/{function}/logs", params={"outcome": name, "tail": 500}).json()["items"]
    assert request_id in [call["id"] for call in logged]
    assert {call["outcome"] for call in logged} == {name}


def test_a_caller_who_leaves_is_told_from_a_call_that_ran_out_of_time(platform: Platform) -> None:
    seen = {call["id"] for call in platform.http.get("/invocations", params={"outcome": "cancelled"}).json()["items"]}
    with socket.create_connection(platform.address) as connection:
        head = f"POST /functions/{NAME}/invoke HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(SLEEPS)}\r\n\r\n"
        connection.sendall((head + SLEEPS).encode())
        until(lambda: _active(platform) > 0, "the call runs")

    def cancelled() -> bool:
        found = platform.http.get("/invocations", params={"outcome": "cancelled"}).json()["items"]
        return any(call["id"] not in seen for call in found)

    until(cancelled, "the call is recorded as cancelled")


def _active(platform: Platform) -> int:
    pools: list[dict[str, Any]] = platform.http.get("/stats").json()["pools"]
    return sum(pool["inflight"] for pool in pools if pool["function"] == NAME)


def test_a_function_that_cannot_be_called_says_why(platform: Platform) -> None:
    path = "/functions/broken/readiness"
    cold = platform.http.get(path).json()
    assert (cold["invokable"], cold["state"], cold["reasons"]) == (True, "cold", [])
    answer = platform.post("broken", {})
    assert outcome(platform, answer.headers["x-request-id"]) == "init_error"
    told = platform.http.get(path).json()
    assert (told["invokable"], told["reasons"][0]["code"]) == (False, "init_error")
    assert "nothing_of_this_name" in told["reasons"][0]["detail"]
    shown = CliRunner().invoke(app, ["--server", platform.url, "--no-color", "describe", "broken"]).stdout
    assert "not invokable" in shown
    assert "nothing_of_this_name" in shown
    platform.call(NAME, {"how": "well"})
    warm = platform.http.get(f"/functions/{NAME}/readiness").json()
    assert (warm["state"], warm["here"]["ready"] + warm["here"]["busy"] > 0) == ("warm", True)
    assert platform.http.get("/functions/nobody/readiness").status_code == 404


def test_a_cold_call_says_where_its_time_went(platform: Platform) -> None:
    platform.deploy("phases", "import time\ntime.sleep(0.03)\ndef handler(event):\n    time.sleep(0.02)\n")
    try:
        answer = platform.post("phases", {})
        assert answer.headers["x-nova-cold-start"] == "true"
        timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert list(timing) == ["queue", "instance", "runtime", "import", "init", "handler"]
        assert float(timing["import"]) >= 30
        assert float(timing["handler"]) >= 20
        total = sum(float(part) for part in timing.values())
        assert total == pytest.approx(float(answer.headers["x-nova-duration-ms"]), abs=1)
    finally:
        platform.delete("phases")
