"""Functions through the API: create, read, change, delete."""

import asyncio
import json
from typing import Any

import pytest

from nova.domain.asyncs import AsyncDestinations, AsyncPolicy, Destination
from nova.domain.function import NetworkPolicy
from nova.domain.identity import Scope
from nova.domain.version import VersionConfig
from nova.execution.snapshots import SnapshotMaker
from nova.ids import new_id
from tests.control.support import HELLO, RUNTIMES, Control, fields, problem
from tests.events.bus.topics import topic
from tests.events.workflows.support import chain, node, workflow

pytestmark = pytest.mark.anyio

EVERYTHING: dict[str, Any] = {
    "runtime": "python3.11",
    "handler": "app.api.handle",
    "files": {"app/__init__.py": "", "app/api.py": "def handle(e, c): return e"},
    "mode": "process",
    "memory_mb": 256,
    "timeout_s": 7,
    "stream_idle_s": 4,
    "snapshot": "off",
    "instance_concurrency": 3,
    "min_replicas": 2,
    "max_replicas": 5,
    "idle_ttl_s": 12.5,
    "max_calls": 1000,
    "max_instance_age_s": 3600,
    "provisioned": [
        {"cron": "0 8 * * 1-5", "time_zone": "Europe/Berlin", "duration_s": 3600, "replicas": 4, "name": "morning"}
    ],
    "capacity_policy": {
        "max_inflight": 50,
        "max_queue_depth": 20,
        "max_queue_wait_ms": 500,
        "shed_status_code": 429,
    },
    "backend": "sandbox",
    "limits": {"vcpus": 0.5, "tmp_mb": 32, "pids": 64, "open_files": 256, "net_mbps": 50},
    "network_policy": {
        "isolation_mode": "strict",
        "egress_rules": [
            {"host": "192.0.2.0/24", "port": 443, "protocol": "tcp"},
            {"host": "*.api.xn--bcher-kva.example", "port": 443, "protocol": "tcp"},
        ],
        "deny_external_access": True,
    },
    "env_vars": {"GREETING": "hi"},
    "description": "says hi",
    "tags": {"team": "a"},
    "function_url": {"enabled": False, "invoke_mode": "stream"},
    "capture": {"payloads": "errors", "max_kb": 8, "redact": ["/password"]},
    "async_policy": {
        "max_attempts": 5,
        "backoff_base_ms": 10,
        "backoff_max_ms": 100,
        "max_age_s": 600,
        "max_inflight": 4,
        "rate_limit_per_s": 2.5,
    },
    "async_destinations": {
        "on_success": {"type": "function", "target": "hello"},
        "on_failure": {"type": "webhook", "target": "https://hooks.example/x"},
    },
}


class Networks:
    """What a backend gives functions that name no policy."""

    def default_network(self, backend: str, runtime: str) -> NetworkPolicy:
        return NetworkPolicy(isolation_mode="strict")

    async def ready(self, backend: str, runtime: str) -> None: ...


async def config(plane: Control, name: str = "hello", version: int | None = None) -> VersionConfig:
    """What the execution plane reads."""
    function = await plane.functions.lookup(Scope(), name)
    assert function is not None
    record = await plane.versions.version(function.id, version or function.live_version or function.head_version)
    assert record is not None
    return record.config


async def test_create_gives_a_callable_first_version(plane: Control) -> None:
    answer = await plane.client.post("/functions", json={"name": "hello", "runtime": "python", "code": HELLO})
    assert answer.status_code == 201
    assert answer.headers["Location"].endswith("/functions/hello")
    created = answer.json()
    assert (created["version"], created["latest_version"], created["compile_status"]) == (1, 1, "not_required")
    assert created["urls"] == {"invoke": "/v1/functions/hello/invoke", "function": "/fn/hello"}
    assert (created["entry_point"], created["entry_kind"], created["created_by"]) == ("main.py", "handler", "operator")
    members = await plane.artifact()
    assert members["handler"].linkname == "main.py"
    assert members["main.py"].size == len(HELLO)


async def test_every_field_is_kept_and_shown(plane: Control) -> None:
    created = await plane.create(**EVERYTHING)
    assert {name: created[name] for name in EVERYTHING if name != "files"} == {
        name: value for name, value in EVERYTHING.items() if name != "files"
    }
    frozen = await config(plane)
    assert (frozen.limits.memory_mb, frozen.limits.vcpus, frozen.limits.tmp_mb) == (256, 0.5, 32)
    assert (frozen.limits.pids, frozen.limits.open_files, frozen.timeout_s, frozen.concurrency) == (64, 256, 7, 3)
    assert (frozen.mode, frozen.backend, frozen.env, frozen.entry) == (
        "process",
        "sandbox",
        {"GREETING": "hi"},
        "app/api.py",
    )
    assert frozen.network is not None
    assert frozen.network.isolation_mode == "strict"
    assert frozen.network.deny_external_access
    assert [(r.host, r.port, r.protocol) for r in frozen.network.egress_rules] == [
        ("192.0.2.0/24", 443, "tcp"),
        ("*.api.xn--bcher-kva.example", 443, "tcp"),
    ]
    assert frozen.limits.net_mbps == 50
    function = await plane.functions.lookup(Scope(), "hello")
    version = await plane.versions.version(function.id, 1) if function else None
    assert function is not None
    assert version is not None
    snapshot = SnapshotMaker(RUNTIMES, Networks()).make(function, version)
    assert (snapshot.limits, snapshot.network, snapshot.env) == (frozen.limits, frozen.network, {"GREETING": "hi"})
    assert (snapshot.mode, snapshot.timeout_s, snapshot.concurrency, snapshot.max_replicas) == ("process", 7, 3, 5)
    assert snapshot.stream_idle_s == 4
    assert snapshot.snapshot == "off"
    assert (snapshot.runtime, snapshot.handler, snapshot.function_url) == ("python", "app.api.handle", False)
    recorded = function.settings.recorded
    assert (recorded.min_replicas, recorded.max_replicas) == (2, 5)
    assert (recorded.idle_ttl_s, recorded.function_url) == (12.5, False)
    assert recorded.async_policy == AsyncPolicy(5, 10, 100, 600, 4, 2.5)
    assert recorded.async_destinations == AsyncDestinations(
        Destination("function", "hello"), Destination("webhook", "https://hooks.example/x")
    )
    assert (recorded.capture.payloads, recorded.capture.max_kb, recorded.capture.redact) == (
        "errors",
        8,
        ("/password",),
    )
    assert created["urls"]["function"] is None


BAD: list[tuple[str, Any, str | None]] = [
    ("name", "a b", "name"),
    ("name", "a\r\nb", "name"),
    ("name", "ä", "name"),
    ("name", "", "name"),
    ("name", "x" * 65, "name"),
    ("runtime", "cobol", "runtime"),
    ("runtime", "python2.7", "runtime"),
    ("memory_mb", 127, "memory_mb"),
    ("memory_mb", 10241, "memory_mb"),
    ("memory_mb", "128", "memory_mb"),
    ("memory_mb", 128.5, "memory_mb"),
    ("memory_mb", True, "memory_mb"),
    ("timeout_s", 0, "timeout_s"),
    ("timeout_s", 901, "timeout_s"),
    ("stream_idle_s", -1, "stream_idle_s"),
    ("snapshot", "always", "snapshot"),
    ("stream_idle_s", 901, "stream_idle_s"),
    ("instance_concurrency", 1001, "instance_concurrency"),
    ("max_replicas", -1, "max_replicas"),
    ("max_replicas", 1001, "max_replicas"),
    ("min_replicas", 101, "min_replicas"),
    ("min_replicas", -1, "min_replicas"),
    ("async_policy", {"max_attempts": 0}, "async_policy.max_attempts"),
    ("async_policy", {"max_inflight": 0}, "async_policy.max_inflight"),
    ("async_policy", {"rate_limit_per_s": 0}, "async_policy.rate_limit_per_s"),
    ("async_destinations", {"on_success": {"type": "queue", "target": "t"}}, "async_destinations.on_success.type"),
    ("async_destinations", {"on_success": {"type": "topic", "target": "a b"}}, "async_destinations.on_success"),
    ("async_destinations", {"on_success": {"type": "workflow", "target": "a b"}}, "async_destinations.on_success"),
    ("async_destinations", {"on_success": {"type": "function", "target": "a b"}}, "async_destinations.on_success"),
    ("async_destinations", {"on_failure": {"type": "webhook", "target": "ftp://x/"}}, "async_destinations.on_failure"),
    ("idle_ttl_s", 0, "idle_ttl_s"),
    ("mode", "fleeting", "mode"),
    ("backend", "lxc", "backend"),
    ("handler", "main", "handler"),
    ("handler", "../main.handler", "handler"),
    ("handler", "other.handler", None),
    ("limits", {"vcpus": 0.05}, "limits.vcpus"),
    ("limits", {"pids": 0}, "limits.pids"),
    ("limits", {"tmp_mb": 0}, "limits.tmp_mb"),
    ("limits", {"open_files": 1}, "limits.open_files"),
    ("network_policy", {"isolation_mode": "open"}, "network_policy.isolation_mode"),
    ("limits", {"net_mbps": 0}, "limits.net_mbps"),
    ("network_policy", {"egress_rules": [{"host": "example .org"}]}, "network_policy.egress_rules.0.host"),
    ("network_policy", {"egress_rules": [{"host": "*.org"}]}, "network_policy.egress_rules.0.host"),
    ("network_policy", {"egress_rules": [{"host": "192.0.2.1"}] * 101}, "network_policy.egress_rules"),
    (
        "network_policy",
        {"egress_rules": [{"host": "1.2.3.4", "port": 65536}]},
        "network_policy.egress_rules.0.port",
    ),
    ("env_vars", {"NOVA_X": "1"}, "env_vars"),
    ("env_vars", {"AWS_LAMBDA_FUNCTION_NAME": "1"}, "env_vars"),
    ("env_vars", {"_HANDLER": "1"}, "env_vars"),
    ("env_vars", {"1A": "1"}, "env_vars"),
    ("env_vars", {"A": "$SECRET:x"}, "env_vars"),
    ("env_vars", {"A": "x" * 33_000}, "env_vars"),
    ("env_vars", {f"A{i}": "" for i in range(101)}, "env_vars"),
    ("tags", {f"t{i}": "" for i in range(51)}, "tags"),
    ("description", "x" * 4097, "description"),
    ("capture", {"redact": ["password"]}, "capture.redact.0"),
    ("capture", {"max_kb": 6145}, "capture.max_kb"),
    ("dependency_files", {"go.mod": ""}, "dependency_files.go.mod"),
]
"""A member, a value it cannot have, and the field that the refusal names (None: it depends on the rest)."""


async def test_bad_values_are_refused_by_name(plane: Control) -> None:
    """AP3: update validates as strictly as create, and a bad field is a 400 with its name."""
    good = {"name": "hello", "runtime": "python", "code": HELLO}
    for member, value, field in BAD:
        if field is not None:
            document = problem(
                await plane.client.post("/functions", json={**good, member: value}), 400, "validation_failed"
            )
            named = [name for name in fields(document) if name == field or name.startswith(f"{field}.")]
            assert named, (member, value, document)
    problem(await plane.client.get("/functions/hello"), 404, "not_found")
    await plane.create()
    for member, value, _ in BAD:
        if member != "name":
            answer = await plane.client.patch("/functions/hello", json={member: value})
            assert fields(problem(answer, 400, "validation_failed")), (member, value)
    assert (await plane.get("/functions/hello"))["latest_version"] == 1


UNKNOWN: list[dict[str, Any]] = [
    {"async_policy": {"priority": 1}},
    {"limits": {"disk_iops": 1}},
    {"function_url": {"auth": "none"}},
    {"layers": []},
    {"archive": ""},
]


async def test_fields_that_are_not_built_are_unknown(plane: Control) -> None:
    good = {"name": "hello", "runtime": "python", "code": HELLO}
    for unknown in UNKNOWN:
        problem(await plane.client.post("/functions", json={**good, **unknown}), 400, "unknown_field")
    await plane.create()
    for unknown in UNKNOWN:
        problem(await plane.client.patch("/functions/hello", json=unknown), 400, "unknown_field")


async def test_exactly_one_form_of_code(plane: Control) -> None:
    none = {"name": "hello", "runtime": "python"}
    problem(await plane.client.post("/functions", json=none), 400, "validation_failed")
    both = {**none, "code": HELLO, "files": {"main.py": HELLO}}
    assert fields(problem(await plane.client.post("/functions", json=both), 400, "validation_failed")) == [
        "code",
        "files",
    ]


async def test_a_taken_name_is_a_conflict_also_in_a_race(plane: Control) -> None:
    body = {"name": "hello", "runtime": "python", "code": HELLO}
    answers = await asyncio.gather(*(plane.client.post("/functions", json=body) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert (await plane.get("/functions/hello/versions"))["items"][0]["version"] == 1


async def test_dry_run_validates_and_writes_nothing(plane: Control) -> None:
    body = {"name": "hello", "runtime": "python", "code": HELLO, "memory_mb": 512}
    answer = await plane.client.post("/functions?dry_run=true", json=body)
    assert answer.status_code == 200
    assert answer.json()["memory_mb"] == 512
    problem(await plane.client.get("/functions/hello"), 404, "not_found")
    problem(await plane.client.post("/functions?dry_run=true", json={**body, "memory_mb": 1}), 400, "validation_failed")
    await plane.create()
    answer = await plane.client.patch("/functions/hello?dry_run=true", json={"timeout_s": 3})
    assert (answer.json()["timeout_s"], answer.json()["latest_version"]) == (3, 2)
    shown = await plane.get("/functions/hello")
    assert (shown["timeout_s"], shown["latest_version"]) == (30, 1)
    assert (await plane.database.one("SELECT count(*) AS n FROM blobs")) == {"n": 2}


async def test_patch_of_a_versioned_field_makes_a_version_and_others_do_not(plane: Control) -> None:
    """AP2: numbers go up and are never given twice."""
    await plane.create(env_vars={"A": "1", "B": "2"}, tags={"x": "1"})
    changed = await plane.patch(memory_mb=256)
    assert (changed["version"], changed["latest_version"], changed["memory_mb"]) == (2, 2, 256)
    unchanged = await plane.patch(memory_mb=256)
    assert unchanged["latest_version"] == 2
    for live in ({"description": "d"}, {"tags": {"y": "2"}}, {"max_replicas": 3}, {"function_url": {"enabled": False}}):
        assert (await plane.patch(**live))["latest_version"] == 2
    shown = await plane.get("/functions/hello")
    assert (shown["description"], shown["tags"], shown["max_replicas"]) == ("d", {"x": "1", "y": "2"}, 3)
    merged = await plane.patch(env_vars={"A": None, "C": "3"})
    assert (merged["env_vars"], merged["latest_version"]) == ({"B": "2", "C": "3"}, 3)
    reset = await plane.patch(memory_mb=None, max_replicas=None, tags=None)
    assert (reset["memory_mb"], reset["max_replicas"], reset["tags"], reset["latest_version"]) == (128, 100, {}, 4)
    assert (await config(plane, version=2)).limits.memory_mb == 256


async def test_patch_keeps_the_code_and_its_artifact(plane: Control) -> None:
    await plane.create()
    before = await plane.get("/functions/hello/versions/1")
    await plane.patch(timeout_s=5)
    after = await plane.get("/functions/hello/versions/2")
    assert after["artifact"] == before["artifact"]
    assert after["files"] == before["files"]


async def test_patch_with_code_deploys_it(plane: Control) -> None:
    first = await plane.create()
    second = await plane.patch(code="def handler(e): return 2\n")
    assert second["version"] == 2
    assert second["code_hash"] != first["code_hash"]
    again = await plane.patch(code="def handler(e): return 2\n")
    assert again["latest_version"] == 2
    parked = await plane.patch(code="def handler(e): return 3\n", deploy="publish")
    assert (parked["version"], parked["head_version"], parked["latest_version"]) == (2, 3, 3)


async def test_a_patch_that_moves_the_handler_finds_its_file(plane: Control) -> None:
    await plane.create(files={"main.py": HELLO, "other.py": "def run(e): return 1"})
    moved = await plane.patch(handler="other.run")
    assert (moved["handler"], moved["entry_point"], moved["version"]) == ("other.run", "other.py", 2)
    assert (await plane.artifact())["handler"].linkname == "other.py"
    back = await plane.patch(handler=None)
    assert (back["handler"], back["entry_point"]) == ("main.handler", "main.py")


async def test_put_creates_replaces_and_recognises_no_change(plane: Control) -> None:
    body = {"runtime": "python", "code": HELLO, "memory_mb": 256, "description": "one"}
    created = await plane.client.put("/functions/hello", json=body)
    assert created.status_code == 201
    assert created.headers["Location"].endswith("/functions/hello")
    same = await plane.client.put("/functions/hello", json=body)
    assert (same.status_code, same.json()["latest_version"]) == (200, 1)
    assert same.headers["ETag"] == created.headers["ETag"]
    replaced = await plane.client.put("/functions/hello", json={"runtime": "python", "code": HELLO})
    assert (replaced.json()["memory_mb"], replaced.json()["description"]) == (128, "")
    assert replaced.json()["version"] == 2
    assert fields(problem(await plane.client.put("/functions/a%20b", json=body), 400, "validation_failed")) == ["name"]
    problem(await plane.client.put("/functions/hello", json={"runtime": "python"}), 400, "validation_failed")


async def test_put_needs_the_right_to_create_what_is_not_there(plane: Control) -> None:
    key = await plane.api.key("operator")
    headers = {"X-API-Key": key}
    body = {"runtime": "python", "code": HELLO}
    problem(await plane.api.remote.put("/functions/hello", json=body, headers=headers), 403, "forbidden")
    await plane.create()
    assert (await plane.api.remote.put("/functions/hello", json=body, headers=headers)).status_code == 200


async def test_stale_if_match_is_refused_and_etags_revalidate(plane: Control) -> None:
    """DB11: of two concurrent updates of one state, one wins and the other is told."""
    await plane.create()
    read = await plane.client.get("/functions/hello")
    tag = read.headers["ETag"]
    assert (await plane.client.get("/functions/hello", headers={"If-None-Match": tag})).status_code == 304
    answers = await asyncio.gather(
        *(
            plane.client.patch("/functions/hello", json={"memory_mb": 200 + i}, headers={"If-Match": tag})
            for i in range(4)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]
    assert (await plane.get("/functions/hello"))["latest_version"] == 2
    stale = await plane.client.delete("/functions/hello", headers={"If-Match": tag})
    problem(stale, 412, "etag_mismatch")
    assert (await plane.client.get("/functions/hello", headers={"If-None-Match": tag})).status_code == 200


async def test_concurrent_patches_lose_nothing(plane: Control) -> None:
    """DB11: patches without If-Match are applied one after the other, each to what the one before left."""
    await plane.create()
    await asyncio.gather(*(plane.patch(env_vars={f"V{i}": "1"}) for i in range(8)))
    shown = await plane.get("/functions/hello")
    assert shown["env_vars"] == {f"V{i}": "1" for i in range(8)}
    assert (shown["version"], shown["latest_version"]) == (9, 9)


async def test_delete_removes_everything_of_the_function(plane: Control) -> None:
    """AP4: deleting what is not there is a 404."""
    await plane.create()
    await plane.client.post("/functions/hello/aliases", json={"name": "prod", "version": 1})
    assert (await plane.client.delete("/functions/hello")).status_code == 204
    problem(await plane.client.delete("/functions/hello"), 404, "not_found")
    problem(await plane.client.get("/functions/hello/versions/1"), 404, "not_found")
    for table in ("functions", "function_versions", "function_code", "function_files", "function_aliases"):
        assert await plane.database.one(f"SELECT count(*) AS n FROM {table}") == {"n": 0}
    assert (await plane.create())["version"] == 1


async def test_what_names_a_function_keeps_it(plane: Control) -> None:
    """Nothing that is in use goes quietly; a cascade takes what is nothing without the function, and only that."""
    db = plane.database
    for name in ("hello", "other"):
        await plane.create(name)
    topic_id, subscription, trigger = await topic(db), new_id(), new_id()
    await db.run(
        "INSERT INTO event_subscriptions (id, tenant_id, namespace, topic_id, name, consumer_group, enabled, settings,"
        " shard, cursor, created_by) VALUES (%(id)s, 'default', 'default', %(topic)s, 's', 's', true, %(settings)s,"
        " 0, 0, 'test')",
        id=subscription,
        topic=topic_id,
        settings=json.dumps({"type": "function", "target": "hello"}),
    )
    await db.run(
        "INSERT INTO triggers (id, tenant_id, namespace, name, type, target_type, target, enabled, config, filters,"
        " batch_size, batch_window_ms, max_inflight, on_error, max_attempts, created_by) VALUES (%(id)s, 'default',"
        " 'default', 't', 'webhook', 'function', 'hello', true, '{}', '[]', 1, 0, 1, 'retry', 1, 'test')",
        id=trigger,
    )
    mapped = node("each", "map", item={"node_key": "one", "node_type": "function", "function_name": "hello"})
    await workflow(db, "w", chain(mapped))
    await plane.client.patch(
        "/functions/other", json={"async_destinations": {"on_failure": {"type": "function", "target": "hello"}}}
    )

    kept = problem(await plane.client.delete("/functions/hello"), 409, "in_use")
    assert kept["references"] == [
        "/functions/other", f"/subscriptions/{subscription}", f"/triggers/{trigger}", "/workflows/w"
    ]  # fmt: skip
    kept = problem(await plane.client.delete("/functions/hello?cascade=true"), 409, "in_use")
    assert kept["references"] == ["/functions/other", "/workflows/w"]
    assert await db.one("SELECT count(*) AS n FROM triggers") == {"n": 1}

    await plane.client.patch("/functions/other", json={"async_destinations": {"on_failure": None}})
    await db.run("UPDATE dag_workflows SET deleted_at = now()")
    assert (await plane.client.delete("/functions/hello?cascade=true")).status_code == 204
    for table in ("triggers", "event_subscriptions"):
        assert await db.one(f"SELECT count(*) AS n FROM {table}") == {"n": 0}


async def test_lists_filter_and_page(plane: Control) -> None:
    """AP4: one envelope, newest first, cursors that stay put while rows are inserted."""
    for i in range(5):
        await plane.create(f"fn-{i}", tags={"team": "ab"[i % 2]}, description=f"number {i}")
    await plane.create("shell", runtime="custom", mode="process", code="#!/bin/sh\n", backend="sandbox")
    first = await plane.get("/functions?limit=4")
    assert [item["name"] for item in first["items"]] == ["shell", "fn-4", "fn-3", "fn-2"]
    await plane.create("later")
    rest = await plane.get(f"/functions?limit=4&cursor={first['next_cursor']}")
    assert ([item["name"] for item in rest["items"]], rest["next_cursor"]) == (["fn-1", "fn-0"], None)

    async def names(query: str) -> list[str]:
        return [item["name"] for item in (await plane.get(f"/functions?{query}"))["items"]]

    assert await names("runtime=custom") == ["shell"]
    assert await names("mode=process") == ["shell"]
    assert await names("backend=sandbox") == ["shell"]
    assert await names("tag=team%3Da") == ["fn-4", "fn-2", "fn-0"]
    assert len(await names("tag=team")) == 5
    assert await names("q=NUMBER%203") == ["fn-3"]
    assert await names("q=%25") == []
    assert await names("compile_status=failed") == []
    assert len(await names("compile_status=not_required")) == 7
    assert "source_code" not in first["items"][0]
    for bad in ("limit=0", "limit=501", "mode=x", "nope=1"):
        assert (await plane.client.get(f"/functions?{bad}")).status_code == 400
    problem(await plane.client.get("/functions?cursor=abc"), 400, "invalid_cursor")
    problem(await plane.client.get("/functions?cursor=WyJhIl0"), 400, "invalid_cursor")


async def test_tenants_do_not_see_each_other(plane: Control) -> None:
    """DB5: two tenants have functions of one name, and neither sees, changes or deletes the other's."""
    await plane.api.tenant("acme")
    await plane.create(description="default's")
    acme = {"X-Nova-Tenant": "acme"}
    problem(await plane.client.get("/functions/hello", headers=acme), 404, "not_found")
    body = {"name": "hello", "runtime": "python", "code": HELLO, "description": "acme's"}
    created = await plane.client.post("/functions", json=body, headers=acme)
    assert created.status_code == 201
    assert created.json()["urls"]["function"] == "/t/acme/default/fn/hello"
    await plane.client.post("/functions/hello/aliases", json={"name": "prod", "version": 1}, headers=acme)
    problem(await plane.client.get("/functions/hello/aliases/prod"), 404, "not_found")
    assert (await plane.client.patch("/functions/hello", json={"memory_mb": 512}, headers=acme)).status_code == 200
    assert (await plane.get("/functions/hello"))["memory_mb"] == 128
    assert (await plane.client.delete("/functions/hello", headers=acme)).status_code == 204
    assert (await plane.get("/functions/hello"))["description"] == "default's"


async def test_what_no_backend_can_enforce_is_refused_at_deploy(plane: Control) -> None:
    """BE6: a function that asks for what its backend cannot enforce is refused by name at deploy, not run without it."""
    plane.backends.refuse.add("network_policy")
    body = {"name": "hello", "runtime": "python", "code": HELLO, "network_policy": {"isolation_mode": "none"}}
    assert fields(problem(await plane.client.post("/functions", json=body), 422, "unsupported")) == ["network_policy"]
    await plane.create()
    answer = await plane.client.patch("/functions/hello", json={"network_policy": {"isolation_mode": "none"}})
    problem(answer, 422, "unsupported")


async def test_changes_are_announced_when_they_are_committed(plane: Control) -> None:
    """DB1: every change of a function reaches whoever listens."""
    heard: list[str] = []
    changed = asyncio.Event()

    def hear(payload: str) -> None:
        heard.append(payload)
        changed.set()

    plane.api.guards.listener.on("nova_functions", hear)

    async def announced(change: Any) -> str:
        changed.clear()
        await change
        await asyncio.wait_for(changed.wait(), 20)
        return heard[-1]

    created = await announced(plane.create())
    assert '"name":"hello"' in created
    assert '"tenant":"default"' in created
    for change in (
        plane.patch(memory_mb=256),
        plane.patch(description="x"),
        plane.client.post("/functions/hello/versions/1/activate"),
        plane.client.post("/functions/hello/aliases", json={"name": "prod", "version": 1}),
        plane.client.patch("/functions/hello/aliases/prod", json={"version": 2}),
        plane.client.delete("/functions/hello/aliases/prod"),
    ):
        last = heard[-1]
        assert await announced(change) != last
    assert '"generation":0' in await announced(plane.client.delete("/functions/hello"))


async def test_changes_leave_an_audit_row(plane: Control) -> None:
    """SE5: every change leaves one row."""
    await plane.create()
    await plane.patch(memory_mb=256)
    await plane.client.delete("/functions/hello")
    rows = [(row["action"], row["resource"]) for row in await plane.api.audit()]
    assert rows == [
        ("function.create", "/functions/hello"),
        ("function.update", "/functions/hello"),
        ("function.delete", "/functions/hello"),
    ]
