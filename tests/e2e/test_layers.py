"""Layers and volumes on the whole platform: in one process, and in six."""

import base64
from collections.abc import Iterator

import pytest

from nova.execution.volume_files import obstacle
from tests.control.support import zip_of
from tests.e2e.misuse import Platform, platform_at
from tests.e2e.server import NovaServer

CODE = """
import greeting
def handler(event, context):
    with open("/mnt/data/calls", "a+") as calls:
        calls.write(".")
        calls.seek(0)
        return {"said": greeting.TEXT, "calls": len(calls.read())}
"""


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


def greeting(text: str) -> str:
    return f"TEXT = {text!r}"


@pytest.mark.root
@pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "it works")
def test_a_function_imports_from_a_layer_and_writes_to_a_volume(platform: Platform) -> None:
    http = platform.http
    archive = zip_of({"python/greeting.py": greeting("one")})
    published = http.post("/layers", files={"archive": ("layer.zip", archive)}, data={"meta": '{"name": "layered"}'})
    assert published.status_code == 201, published.text
    assert http.post("/volumes", json={"name": "layered", "size_mb": 4}).status_code == 201
    platform.deploy("layered", "def handler(event, context): ...")
    mounts = {"mounts": [{"volume": "layered", "path": "/mnt/data"}]}
    assert http.put("/functions/layered/mounts", json=mounts).status_code == 200
    assert http.put("/functions/layered/layers", json={"layers": ["layered"]}).status_code == 200
    code = http.put("/functions/layered/code", json={"code": CODE})
    assert code.status_code == 200, code.text
    assert platform.call("layered", {}) == {"said": "one", "calls": 1}
    files = {"python/greeting.py": base64.b64encode(greeting("two").encode()).decode()}
    assert http.post("/layers", json={"name": "layered", "files": files}).json()["version"] == 2
    version = http.put("/functions/layered/layers", json={"layers": ["layered@2"]}).json()["version"]
    answer = http.post("/functions/layered/invoke", params={"qualifier": version}, json={}).json()
    assert answer["output"] == {"said": "two", "calls": 2}, "the instance before has made way"
    shown = http.get("/volumes/layered").json()
    assert (shown["mounted_by"], bool(shown["node"])) == (["layered"], True)
    assert http.delete("/volumes/layered").status_code == 409
    platform.delete("layered")
    for resource in ("/volumes/layered", "/layers/layered"):
        assert http.delete(resource).status_code == 204
