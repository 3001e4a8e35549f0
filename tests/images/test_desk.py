"""Images over HTTP: made in a process of their own, followed while they are, and refused by name."""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nova.api import images as api_images
from nova.execution.images import Images
from nova.execution.images.desk import ImageHandlers
from nova.runtimes.registry import Runtimes
from nova.store.db import Database
from tests import imaging
from tests.http.harness import Api, management

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(imaging.obstacle("ext4")), reason=imaging.obstacle("ext4")),
]


async def eventually(true: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await true():
            await asyncio.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    imaging.image("custom", "tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "stems").symlink_to(imaging.cache() / "stems")
    return tmp_path / "images"


@pytest.fixture
async def api(database: Database, folder: Path) -> AsyncIterator[Api]:
    desk = ImageHandlers(Images(folder, Runtimes()), "here")
    await desk.start()
    async with management(database, [desk], api_images.ROUTES) as served:
        yield served
    await desk.close()


async def listed(api: Api) -> list[dict[str, object]]:
    found = (await api.client.get("/system/images")).json()
    items: list[dict[str, object]] = found["items"]
    return items


async def test_an_image_is_prepared_and_followed(api: Api, folder: Path) -> None:
    assert await listed(api) == []
    begun = await api.client.post("/runtimes/custom/prepare", json={"backend": "docker"})
    assert begun.status_code == 202, begun.text
    assert (begun.json()["status"], begun.json()["form"], begun.json()["node"]) == ("building", "tar", "here")
    seen = set()

    async def ready() -> bool:
        [image] = await listed(api)
        seen.add(image["status"])
        return image["status"] == "ready"

    await eventually(ready, timeout_s=60)
    assert seen <= {"building", "ready"}
    [image] = await listed(api)
    assert (image["runtime"], image["digest"], image["detail"]) == ("custom", begun.json()["digest"], None)
    again = await api.client.post("/runtimes/custom/prepare", json={"backend": "docker"})
    assert (again.status_code, again.json()["status"]) == (202, "ready")

    older = folder / "custom-000000000000"
    older.mkdir()
    (older / "rootfs.tar").write_bytes(b"x")
    (older / "image.json").write_text(json.dumps({"runtime": "custom", "version": "", "digest": "000000000000"}))
    first = (await api.client.get("/system/images", params={"limit": 1})).json()
    rest = (await api.client.get("/system/images", params={"cursor": first["next_cursor"]})).json()
    assert [first["items"][0]["status"], rest["items"][0]["status"]] == ["outdated", "ready"]
    assert rest["next_cursor"] is None


async def test_the_backend_decides_the_form(api: Api) -> None:
    begun = await api.client.post("/runtimes/custom/prepare", json={"backend": "qemu"})
    assert (begun.status_code, begun.json()["form"]) == (202, "ext4")
    refused = await api.client.post("/runtimes/custom/prepare", json={"backend": "sandbox"})
    assert (refused.status_code, refused.json()["code"]) == (400, "validation_failed")
    assert "backend" in refused.text
    assert (await api.client.post("/runtimes/cobol/prepare", json={"backend": "docker"})).status_code == 404
    without = await api.client.post("/runtimes/wasm/prepare", json={"backend": "docker"})
    assert without.json()["code"] == "runtime_unavailable"
    assert "no image recipe" in without.json()["detail"]
    # closed with the test: what was begun is ended, and nothing is left of it


async def test_what_failed_says_why(api: Api, folder: Path) -> None:
    (folder / "stems").unlink()
    (folder / "stems").write_text("a file where a folder should be")
    begun = await api.client.post("/runtimes/custom/prepare", json={"backend": "docker"})
    assert begun.status_code == 202

    async def failed() -> bool:
        return [image["status"] for image in await listed(api)] == ["failed"]

    await eventually(failed, timeout_s=30)
    [image] = await listed(api)
    assert "stems" in str(image["detail"])


async def test_a_build_that_is_given_up_leaves_no_process(database: Database, folder: Path) -> None:
    desk = ImageHandlers(Images(folder, Runtimes()), "here")
    async with management(database, [desk], api_images.ROUTES) as api:
        await api.client.post("/runtimes/custom/prepare", json={"backend": "firecracker"})

        async def begun() -> bool:
            return bool(list(folder.glob(".making-*")))

        await eventually(begun, timeout_s=30)
        [work] = folder.glob(".making-*")
        await desk.close()
        held = os.open(work, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who had it has ended
        os.close(held)
        os.utime(work, (0, 0))
        [image] = await listed(api)
        assert image["status"] == "failed"
    Images(folder, Runtimes()).build_now("custom", "tar", lambda _step: None)
    assert not list(folder.glob(".making-*"))
