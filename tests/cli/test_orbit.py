"""Every orbit command against a real running server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nova.cli.orbit import exit_code
from nova.client import ApiError, Client
from tests.cli.conftest import Orbit, Result
from tests.e2e.server import NovaServer

Project = Callable[..., Path]
HELLO = (
    "def handler(event, context):\n    print('called with', sorted(event))\n    return {'hello': event.get('name')}\n"
)
TELLS = """
import time
def handler(event, context):
    print("said")
    for _ in range(event.get("n", 0)):
        yield "ü\\n"
    yield {"n": event.get("n")}
    yield b"\\0\\1"
    if event.get("fail"):
        raise ValueError("late")
    time.sleep(event.get("sleep", 0))
"""
RAISES = "def handler(event, context):\n    raise KeyError(event['which'])\n"


@pytest.fixture
def deployed(orbit: Orbit, project: Project, request: pytest.FixtureRequest) -> str:
    """The name of a function of this test's own."""
    name = f"cli-{abs(hash(request.node.name)) % 10**8}"
    orbit("deploy", str(project(name, {"main.py": HELLO}, runtime="python"))).ok()
    return name


def change(folder: Path, greeting: str) -> None:
    (folder / "main.py").write_text(f"def handler(event, context):\n    return {greeting!r}\n")


def test_init_then_deploy_then_invoke(orbit: Orbit, tmp_path: Path) -> None:
    for runtime in ("python", "node", "custom"):
        folder = tmp_path / f"made-{runtime}"
        orbit("init", runtime, str(folder)).ok()
        shown = orbit("deploy", str(folder)).ok()
        assert f"made-{runtime} version 1 is live" in shown.out
        assert "Hello" in orbit("invoke", f"made-{runtime}", "-d", '{"name": "Ada"}').ok().out
    refused = orbit("init", "python", str(tmp_path / "made-python"))
    assert (refused.code, "already" in refused.err) == (5, True)
    assert orbit("init", "cobol", str(tmp_path / "x")).code == 2


def test_deploying_the_same_folder_twice_makes_one_version(orbit: Orbit, project: Project) -> None:
    folder = project("twice", {"main.py": HELLO, ".novaignore": "*.log\n"}, runtime="python", memory_mb=256)
    first = orbit("deploy", str(folder), "-o", "json").ok().json
    assert (first["version"], first["memory_mb"], first["compile_status"]) == (1, 256, "not_required")
    (folder / "debug.log").write_text("not code")
    assert "unchanged: version 1" in orbit("deploy", str(folder)).ok().out
    change(folder, "new")
    assert "version 2 is live" in orbit("deploy", str(folder)).ok().out
    assert orbit("invoke", "twice").ok().json == "new"


def test_what_the_yaml_no_longer_says_is_the_default_again(orbit: Orbit, project: Project) -> None:
    folder = project("declared", {"main.py": HELLO}, runtime="python", timeout_s=5, tags={"team": "a"})
    orbit("deploy", str(folder)).ok()
    project("declared", {}, runtime="python")
    orbit("deploy", str(folder)).ok()
    function = orbit("get", "declared", "-o", "json").ok().json
    assert (function["timeout_s"], function["tags"]) == (30, {})


def test_deploy_says_what_is_wrong_with_a_field(orbit: Orbit, project: Project) -> None:
    unknown = orbit("deploy", str(project("bad", {"main.py": HELLO}, runtime="python", memory=5)))
    assert (unknown.code, "'memory' is not known" in unknown.err) == (2, True)
    wrong = orbit("deploy", str(project("bad", {"main.py": HELLO}, runtime="python", memory_mb=5)))
    assert wrong.code == 1
    assert "memory_mb" in wrong.err
    assert "Traceback" not in wrong.err


def test_a_build_that_fails_shows_why_and_leaves_the_live_version(orbit: Orbit, project: Project) -> None:
    folder = project("unbuildable", {"main.py": HELLO}, runtime="python")
    orbit("deploy", str(folder)).ok()
    (folder / "requirements.txt").write_text("this-package-does-not-exist-anywhere-9f3a==1\n")
    failed = orbit("deploy", str(folder))
    assert failed.code == 1
    assert "build of version 2 failed" in failed.err
    assert "this-package-does-not-exist-anywhere-9f3a" in failed.err
    assert orbit("invoke", "unbuildable", "-d", '{"name": 1}').ok().json == {"hello": 1}


def test_builds_can_be_listed_and_read(orbit: Orbit, project: Project) -> None:
    folder = project("built", {"main.py": "import idna\n" + HELLO, "requirements.txt": "idna\n"}, runtime="python")
    assert "version 1 is live" in orbit("deploy", str(folder)).ok().out
    (build,) = orbit("builds", "list", "built", "-o", "json").ok().json["items"]
    assert build["status"] == "succeeded"
    assert orbit("builds", "list", "built", "-o", "name").ok().out.split() == [build["id"]]
    assert "idna" in orbit("builds", "logs", build["id"]).ok().out
    assert orbit("builds", "get", build["id"], "-o", "json").ok().json["id"] == build["id"]
    again = orbit("builds", "cancel", build["id"])
    assert again.code == 5  # it has ended


def test_invoke_takes_its_input_from_everywhere(orbit: Orbit, deployed: str, tmp_path: Path) -> None:
    file = tmp_path / "in.json"
    file.write_text('{"name": "file"}')
    assert orbit("invoke", deployed).ok().json == {"hello": None}
    assert orbit("invoke", deployed, "-d", '{"name": "ü"}').ok().json == {"hello": "ü"}
    assert orbit("invoke", deployed, "-f", str(file)).ok().json == {"hello": "file"}
    assert orbit("invoke", deployed, "-", stdin=b'{"name": "in"}').ok().json == {"hello": "in"}
    assert orbit("invoke", deployed, "-f", "-", stdin=b'{"name": "in"}').ok().json == {"hello": "in"}
    assert orbit("invoke", deployed, "-d", "{}", "-f", str(file)).code == 2
    assert orbit("invoke", deployed, "-f", str(tmp_path / "missing")).code == 2
    assert orbit("invoke", deployed, "{}").code == 2


def test_invoke_shows_prints_beside_the_result(orbit: Orbit, deployed: str) -> None:
    shown = orbit("invoke", deployed, "-d", '{"name": 1}', "--tail").ok()
    assert shown.json == {"hello": 1}
    assert "called with ['name']" in shown.err
    answer = orbit("invoke", deployed, "-o", "json").ok().json
    assert set(answer) >= {"request_id", "output", "error", "duration_ms", "cold_start", "version"}
    assert orbit("invoke", deployed, "--query", "version").ok().json == 1


def test_invoke_prints_pieces_of_a_stream(orbit: Orbit, project: Project) -> None:
    orbit("deploy", str(project("tells", {"main.py": TELLS}, runtime="python"))).ok()
    shown = orbit("invoke", "tells", "--stream", "--tail", "-d", '{"n": 2}').ok()
    assert shown.out == 'ü\nü\n{"n": 2}\n\x00\x01'
    assert "said" in shown.err
    assert "version 1, cold, request" in shown.err
    lines = [json.loads(line) for line in orbit("invoke", "tells", "--stream", "-o", "json").ok().out.splitlines()]
    assert [line["event"] for line in lines] == ["start", "chunk", "chunk", "done"]
    failed = orbit("invoke", "tells", "--stream", "-d", '{"fail": true}')
    assert (failed.code, "ValueError: late" in failed.err, failed.out[:1]) == (6, True, "{")
    assert orbit("invoke", "tells", "--stream", "-d", '{"sleep": 60}', "--timeout", "0.3").code == 7
    assert orbit("invoke", "missing", "--stream").code == 3
    assert orbit("invoke", "tells", "--stream", "--async").code == 2
    assert orbit("invoke", "deployed", "--stream", "--watch", "-f", "x").code == 2


def test_the_exit_code_tells_what_kind_of_failure_it_was(orbit: Orbit, project: Project) -> None:
    orbit("deploy", str(project("raises", {"main.py": RAISES}, runtime="python"))).ok()
    failed = orbit("invoke", "raises", "-d", '{"which": "seven"}')
    assert (failed.code, "KeyError" in failed.err) == (6, True)
    as_json = orbit("invoke", "raises", "-o", "json")
    assert (as_json.code, as_json.json["error"]["type"]) == (6, "KeyError")
    sleepy = "import time\ndef handler(event, context):\n    time.sleep(60)\n"
    orbit("deploy", str(project("sleepy", {"main.py": sleepy}, runtime="python", timeout_s=1))).ok()
    assert orbit("invoke", "sleepy").code == 7
    assert orbit("invoke", "sleepy", "--timeout", "0.2").code == 7
    assert orbit("invoke", "missing").code == 3
    assert orbit("get", "a b").code == 3
    assert orbit("invoke", "raises", "-d", "not json").code == 1
    assert orbit("frobnicate").code == 2
    assert orbit("list", "--colour", "red").code == 2
    assert orbit("list", "--query", "[[[").code == 2


def test_list_and_get_in_every_format(orbit: Orbit, deployed: str) -> None:
    assert deployed in orbit("list").ok().out
    assert "HANDLER" in orbit("list", "-o", "wide").ok().out
    page = orbit("-o", "json", "list", "--limit", "1").ok().json
    assert (len(page["items"]), set(page)) == (1, {"items", "next_cursor"})
    everything = orbit("list", "--all", "-o", "json").ok().json
    assert everything["next_cursor"] is None
    assert deployed in {item["name"] for item in everything["items"]}
    assert orbit("list", "-q", deployed, "-o", "name").ok().out == deployed + "\n"
    assert f"name: {deployed}" in orbit("list", "-o", "yaml").ok().out
    assert orbit("get", deployed, "--query", "[name, version]").ok().json == [deployed, 1]
    assert orbit("get", deployed, "--query", "runtime").ok().out == "python\n"
    assert orbit("url", deployed).ok().out.strip().endswith(f"/fn/{deployed}")


def test_json_output_is_the_answer_of_the_api(orbit: Orbit, deployed: str, nova_server: NovaServer) -> None:
    with nova_server.client() as client:
        assert orbit("get", deployed, "-o", "json").ok().json == client.call("function.get", {"name": deployed})


def test_logs_show_what_was_printed(orbit: Orbit, deployed: str) -> None:
    request = orbit("invoke", deployed, "-d", '{"first": 1}', "-o", "json").ok().json["request_id"]
    orbit("invoke", deployed, "-d", '{"second": 1}').ok()
    shown = orbit("logs", deployed).ok().out
    assert shown.index("called with ['first']") < shown.index("called with ['second']")
    one = orbit("logs", deployed, "--request-id", request, "-o", "json").ok().json["items"]
    assert [item["stdout"] for item in one] == ["called with ['first']\n"]
    assert orbit("logs", deployed, "--since", "yesterday").code == 2
    assert request in orbit("invocations", "list", "--function", deployed, "-o", "name").ok().out.split()
    assert orbit("invocations", "get", request, "-o", "json").ok().json["input"] == {"first": 1}


def test_versions_publish_diff_activate_rollback_delete(orbit: Orbit, project: Project) -> None:
    folder = project("versioned", {"main.py": HELLO}, runtime="python")
    orbit("deploy", str(folder)).ok()
    change(folder, "two")
    orbit("deploy", str(folder)).ok()
    assert orbit("versions", "list", "versioned", "-o", "name").ok().out.split() == ["2", "1"]
    assert orbit("versions", "publish", "versioned", "-o", "json").ok().json["version"] == 2
    diff = orbit("versions", "diff", "versioned", "1", "2").ok().out
    assert "+    return 'two'" in diff
    assert orbit("versions", "get", "versioned", "1", "-o", "json").ok().json["live"] is False
    assert orbit("rollback", "versioned").ok().out.startswith("versioned: version 1 is live")
    assert orbit("invoke", "versioned", "-d", '{"name": 1}').ok().json == {"hello": 1}
    assert orbit("rollback", "versioned").code == 5
    orbit("versions", "activate", "versioned", "2").ok()
    assert orbit("invoke", "versioned").ok().json == "two"
    assert orbit("versions", "delete", "versioned", "2", "--yes").code == 5
    orbit("versions", "delete", "versioned", "1", "--yes").ok()
    assert orbit("versions", "get", "versioned", "1").code == 3


def test_aliases_route_calls(orbit: Orbit, project: Project) -> None:
    folder = project("aliased", {"main.py": HELLO}, runtime="python")
    orbit("deploy", str(folder)).ok()
    change(folder, "two")
    orbit("deploy", str(folder)).ok()
    orbit("aliases", "create", "aliased", "old", "--version", "1").ok()
    assert orbit("invoke", "aliased", "--qualifier", "old", "-d", '{"name": 1}').ok().json == {"hello": 1}
    orbit("aliases", "set", "aliased", "old", "--version", "2").ok()
    assert orbit("invoke", "aliased", "--qualifier", "old").ok().json == "two"
    made = orbit("aliases", "set", "aliased", "canary", "--weight", "1=90,2=10", "-o", "json").ok().json
    assert made["traffic_split"] == {"1": 90.0, "2": 10.0}
    assert orbit("aliases", "list", "aliased", "-o", "name").ok().out.split() == ["canary", "old"]
    assert "1=90, 2=10" in orbit("aliases", "list", "aliased").ok().out
    assert orbit("aliases", "set", "aliased", "canary", "--weight", "1=90,2=20").code == 1
    assert orbit("aliases", "set", "aliased", "canary", "--weight", "1:90").code == 2
    assert orbit("aliases", "create", "aliased", "old", "--version", "1").code == 5
    orbit("aliases", "delete", "aliased", "old", "-y").ok()
    assert orbit("aliases", "get", "aliased", "old").code == 3


def test_delete_asks_first(orbit: Orbit, deployed: str) -> None:
    asked = orbit("delete", deployed)
    assert (asked.code, "--yes" in asked.err) == (2, True)
    orbit("delete", deployed, "--yes").ok()
    assert orbit("delete", deployed, "--yes").code == 3


def test_keys_are_shown_once_and_count_at_once(orbit: Orbit, deployed: str, nova_server: NovaServer) -> None:
    key = orbit("keys", "create", "cli-key", "--role", "viewer", "--expires", "1h").ok().out.strip()
    listed = orbit("keys", "list", "-o", "json").ok()
    assert key not in listed.out
    assert "cli-key" in [item["name"] for item in listed.json["items"]]
    assert orbit("list", "--api-key", key).ok()
    denied = orbit("delete", deployed, "--yes", "--api-key", key)
    assert denied.code == 4
    assert orbit("list", "--api-key", key[:-1] + "x").code == 4
    rotated = orbit("keys", "rotate", "cli-key").ok().out.strip()
    assert rotated != key
    assert orbit("list", "--api-key", key).code == 4
    assert orbit("keys", "update", "cli-key", "--disable", "-o", "json").ok().json["enabled"] is False
    assert orbit("list", "--api-key", rotated).code == 4
    orbit("keys", "delete", "cli-key", "--yes").ok()
    assert orbit("keys", "get", "cli-key").code == 3
    assert orbit("keys", "create", "powerless").code == 2


def test_a_key_can_come_from_a_file(orbit: Orbit, tmp_path: Path) -> None:
    file = tmp_path / "key.yaml"
    file.write_text("permissions:\n- {role: developer}\n- {role: developer, functions: [pay-*], effect: deny}\n")
    made = orbit("keys", "create", "filed", "-f", str(file), "-o", "json").ok().json
    assert made["permissions"][1] == {"role": "developer", "functions": ["pay-*"], "effect": "deny"}
    orbit("keys", "delete", "filed", "--yes").ok()


def test_tenants_and_namespaces(orbit: Orbit, project: Project) -> None:
    orbit("tenants", "create", "cli-acme", "--name", "Acme").ok()
    assert orbit("tenants", "get", "cli-acme", "-o", "json").ok().json["name"] == "Acme"
    orbit("namespaces", "create", "shop", "--tenant", "cli-acme").ok()
    names = orbit("namespaces", "list", "--tenant", "cli-acme", "-o", "name").ok().out.split()
    assert sorted(names) == ["default", "shop"]
    here = ("--tenant", "cli-acme", "--namespace", "shop")
    orbit(*here, "deploy", str(project("scoped", {"main.py": HELLO}, runtime="python"))).ok()
    assert orbit("get", "scoped").code == 3
    assert orbit("list", *here, "-o", "name").ok().out == "scoped\n"
    assert orbit("namespaces", "delete", "shop", "--tenant", "cli-acme", "--yes").code == 5
    orbit("tenants", "update", "cli-acme", "--suspend").ok()
    assert orbit("list", *here).code == 4
    orbit("tenants", "delete", "cli-acme", "--yes").ok()
    assert orbit("tenants", "get", "cli-acme").code == 3


def test_runtimes_settings_and_figures(orbit: Orbit, deployed: str) -> None:
    assert {"python", "node", "custom"} <= set(orbit("runtimes", "list", "-o", "name").ok().out.split())
    assert orbit("runtimes", "get", "python", "-o", "json").ok().json["status"] == "available"
    orbit("config", "set", "pool.max_queue_wait", "7s").ok()
    setting = orbit("config", "get", "pool.max_queue_wait", "-o", "json").ok().json
    assert (setting["value"], setting["source"]) == (7.0, "db")
    assert "pool.max_queue_wait" in orbit("config", "list", "--changed").ok().out
    orbit("config", "unset", "pool.max_queue_wait").ok()
    assert orbit("config", "get", "pool.max_queue_wait", "-o", "json").ok().json["source"] == "default"
    assert orbit("config", "set", "pool.frob", "1").code == 1
    assert orbit("config", "get", "pool.frob").code == 3
    orbit("invoke", deployed).ok()
    assert orbit("metrics", deployed, "-o", "json").ok().json["calls"] == 1
    assert orbit("metrics", "-o", "json").ok().json["total_invocations"] >= 1
    assert f"default/default/{deployed}" in orbit("stats").ok().out
    assert orbit("health", "-o", "json").ok().json["status"] == "ok"
    assert orbit("version", "-o", "json").ok().json["server_version"]


def test_global_options_stand_before_or_after_the_command(orbit_alone: Orbit, nova_server: NovaServer) -> None:
    before = orbit_alone("--server", nova_server.url, "-o", "json", "runtimes", "list").ok()
    after = orbit_alone("runtimes", "list", "--server", nova_server.url, "-o", "json").ok()
    assert json.loads(before.out) == json.loads(after.out)
    over: Result = orbit_alone("--server", "http://127.0.0.1:1", "runtimes", "list", "--server", nova_server.url)
    assert over.code == 0


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "validation_failed", 1),
        (401, "unauthenticated", 4),
        (403, "tenant_suspended", 4),
        (404, "not_found", 3),
        (409, "in_use", 5),
        (412, "etag_mismatch", 5),
        (424, "build_failed", 1),
        (429, "rate_limited", 8),
        (500, "internal", 1),
        (502, "instance_lost", 6),
        (503, "queue_full", 8),
        (503, "dependency_unavailable", 1),
        (504, "timeout", 7),
    ],
)
def test_each_refusal_has_its_exit_code(status: int, code: str, expected: int) -> None:
    assert exit_code(ApiError(code, status, "why")) == expected


@pytest.mark.parametrize(
    "arguments", [("list",), ("invoke", "x"), ("logs", "x", "-f"), ("health",), ("deploy", "{project}")]
)
def test_a_server_that_is_not_there_is_one_clear_line(
    orbit_alone: Orbit, project: Project, arguments: tuple[str, ...]
) -> None:
    folder = project("nowhere", {"main.py": HELLO}, runtime="python")
    shown = orbit_alone("--server", "http://127.0.0.1:1", *(a.format(project=folder) for a in arguments))
    assert shown.code == 1
    errors = [line for line in shown.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "no server answers at http://127.0.0.1:1" in errors[0]
    assert "Traceback" not in shown.err


def test_something_else_at_the_address_is_said_to_be(orbit_alone: Orbit) -> None:
    assert orbit_alone("--server", "localhost:99999", "list").code in (1, 2)
    assert orbit_alone("--server", "http://[::1", "list").code in (1, 2)


def test_every_operation_has_a_client_for_it(nova_server: NovaServer) -> None:
    """The client speaks to the real thing: an operation that needs nothing answers."""
    with Client(nova_server.url) as client:
        for op in ("function.list", "invocation.list", "apikey.list", "tenant.list", "stats.get", "config.schema"):
            assert isinstance(client.call(op), dict)
        assert b"openapi" in client.fetch("openapi.get")
        assert b"nova_uptime_seconds" in client.fetch("metrics.prometheus")
