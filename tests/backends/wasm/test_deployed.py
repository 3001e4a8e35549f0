"""WebAssembly on a whole platform: uploaded, compiled, called."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from nova.runtimes.wasm.engine import compiled_name
from tests.backends.wasm import modules
from tests.backends.wasm.harness import RUNTIME
from tests.e2e.misuse import Platform, platform_at
from tests.e2e.server import NovaServer

COMPILED = compiled_name("handler.wasm", RUNTIME.toolchain.version)


@pytest.fixture(scope="module")
def platform(nova_up: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_up.url) as platform:
        yield platform


def binary(module: str) -> dict[str, str]:
    return {"base64": base64.b64encode(wat2wasm(module)).decode()}


def deploy(platform: Platform, name: str, **fields: Any) -> dict[str, Any]:
    """A new function whose build has ended."""
    body = {"name": name, "runtime": "wasm", **fields}
    answer = platform.http.post("/functions", json=body)
    assert answer.status_code == 201, answer.text
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: dict[str, Any] = platform.http.get(f"/functions/{name}").json()
        if found["compile_status"] not in ("pending", "compiling"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"the build of {name} does not end")


def compiled(server: NovaServer) -> list[Path]:
    return [path for path in Path(server.data_dir).glob(f"**/{COMPILED}") if "artifacts" in path.parts]


def test_an_uploaded_module_is_compiled_once_and_called(platform: Platform, nova_up: NovaServer) -> None:
    """BU: the machine code is part of what is mounted, on the wasm backend, and the sources stay what was uploaded."""
    before = set(compiled(nova_up))
    function = deploy(platform, "wasm-echo", files={"handler.wasm": binary(modules.ECHO)}, instance_concurrency=4)
    assert (function["compile_status"], function["handler"]) == ("success", "handler.handle")
    assert platform.call("wasm-echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}
    (made,) = set(compiled(nova_up)) - before
    assert made.stat().st_size > 1000
    listed = platform.http.get("/functions/wasm-echo/files").json()["items"]
    assert [file["path"] for file in listed] == ["handler.wasm"]
    platform.delete("wasm-echo")


def test_machine_code_that_comes_along_is_not_run(platform: Platform) -> None:
    """A compiled file in the upload, with the very name that the platform would give it, is replaced by one of its own."""
    files = {"handler.wasm": binary(modules.COUNTER), COMPILED: {"base64": base64.b64encode(os.urandom(5000)).decode()}}
    deploy(platform, "wasm-planted", files=files)
    assert [platform.call("wasm-planted") for _ in range(3)] == [1, 1, 1]
    platform.delete("wasm-planted")


def test_what_is_no_module_fails_its_build(platform: Platform) -> None:
    function = deploy(platform, "wasm-broken", code="(module (func $f (call $g)))")
    assert function["compile_status"] == "failed"
    assert "unknown func" in function["compile_error"]
    platform.delete("wasm-broken")


def test_a_timeout_ends_the_call_and_not_the_instance(platform: Platform) -> None:
    spins = modules.reactor(
        f"(if (i32.eq (i32.load8_u (local.get $start)) (i32.const 49)) (then (loop $again (br $again)))) {modules.INPUT}"
    )
    deploy(platform, "wasm-spins", code=spins, timeout_s=1)
    assert platform.call("wasm-spins", 2) == 2
    ended = platform.post("wasm-spins", 1)
    assert (ended.status_code, ended.json()["code"]) == (504, "timeout")
    assert platform.post("wasm-spins", 2).json()["cold_start"] is False
    platform.delete("wasm-spins")


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"mode": "process"}, 400, "mode"),
        ({"backend": "sandbox"}, 422, "runtime"),
        ({"runtime": "python", "backend": "wasm", "code": "def handler(event):\n    return 1\n"}, 422, "runtime"),
        ({"handler": "other.handle", "files": {"handler.wat": modules.ECHO}, "code": None}, 400, "handler"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(
    platform: Platform, fields: dict[str, Any], status: int, field: str
) -> None:
    body = {"name": "wasm-refused", "runtime": "wasm", "code": modules.ECHO, **fields}
    answer = platform.http.post("/functions", json={name: value for name, value in body.items() if value is not None})
    assert answer.status_code == status, answer.text
    assert field in [error["field"] for error in answer.json()["errors"]]
