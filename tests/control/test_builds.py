import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.api.builds import ROUTES
from nova.config import BuildSettings, QueueSettings
from nova.control.builds import BuildHandlers
from nova.domain.identity import Scope
from nova.execution.backends.base import CommandResult
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.runtimes.registry import Runtimes
from nova.store.blobs import BlobStore
from nova.store.builds import BuildStore
from nova.store.db import Database
from nova.store.functions import FunctionStore
from nova.store.listen import Listener
from tests.execution.builds_support import SCOPE, Deployer, Scripted, finished
from tests.http.harness import Api, management

pytestmark = pytest.mark.anyio
FILES = {"main.py": "def handler(event):\n    return 1\n", "requirements.txt": "thing\n"}


@pytest.fixture
async def listener(pg_dsn: str) -> AsyncIterator[Listener]:
    listener = Listener(pg_dsn)
    await listener.start()
    yield listener
    await listener.close()


@pytest.fixture
async def api(database: Database, listener: Listener) -> AsyncIterator[Api]:
    handlers = BuildHandlers(BuildStore(database), FunctionStore(database), listener)
    async with management(database, [handlers], ROUTES) as api:
        yield api


@pytest.fixture
def deployer(database: Database) -> Deployer:
    return Deployer(database)


@pytest.fixture
async def runner(database: Database, listener: Listener, tmp_path: Path) -> AsyncIterator[Scripted]:
    """Builds run while this is used; their steps do what the test says."""
    runner, blobs, build = Scripted(), BlobStore(database), BuildSettings()
    builder = Builder(database, blobs, Runtimes(), runner, build, tmp_path)
    service = BuildService(database, listener, blobs, builder, build=build, queue=QueueSettings(), grace_s=0.1)
    await service.start()
    yield runner
    await service.close()


def events(text: str) -> list[tuple[str, str, dict[str, object]]]:
    """(event, id, data) of a finished stream."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], lines["id"], json.loads(lines["data"])))
    return found


async def test_a_build_can_be_read_and_followed(
    database: Database, api: Api, deployer: Deployer, listener: Listener, runner: Scripted
) -> None:
    runner.release.clear()
    build_id = await deployer.deploy("hello", FILES)
    async with asyncio.timeout(20):
        while not runner.commands:
            await asyncio.sleep(0.01)
        assert (await api.client.get(f"/builds/{build_id}")).json()["status"] == "running"
        while "installing" not in (await BuildStore(database).read_log(SCOPE, build_id)).text:
            await asyncio.sleep(0.01)
    follow = asyncio.create_task(api.client.get(f"/builds/{build_id}/logs"))
    runner.release.set()
    async with asyncio.timeout(20):
        got = events((await follow).text)
    *logs, end = got
    assert {event for event, _, _ in logs} == {"log"}
    text = "".join(str(data["text"]) for _, _, data in logs)
    assert text.count("installing") == len(runner.commands)
    assert end[0] == "end"
    build = (await api.client.get(f"/builds/{build_id}")).json()
    assert end[2] == build
    assert (build["status"], build["function"], build["version"], build["cached"]) == ("succeeded", "hello", 1, False)
    assert build["duration_ms"] >= 0
    listed = (await api.client.get("/functions/hello/builds")).json()
    assert listed == {"items": [build], "next_cursor": None}


async def test_a_log_goes_on_after_a_break(
    database: Database, api: Api, deployer: Deployer, listener: Listener, runner: Scripted
) -> None:
    build_id = await deployer.deploy("hello", FILES)
    await finished(listener, BuildStore(database), build_id)
    whole = "".join(
        str(data.get("text", "")) for _, _, data in events((await api.client.get(f"/builds/{build_id}/logs")).text)
    )
    answer = await api.client.get(f"/builds/{build_id}/logs", headers={"Last-Event-ID": "7"})
    assert "".join(str(data.get("text", "")) for _, _, data in events(answer.text)) == whole[7:]
    answer = await api.client.get(f"/builds/{build_id}/logs", headers={"Last-Event-ID": "x"})
    assert answer.status_code == 400


async def test_a_failed_build_can_be_built_again(
    database: Database, api: Api, deployer: Deployer, listener: Listener, runner: Scripted
) -> None:
    runner.result = CommandResult(1)
    first = await deployer.deploy("hello", FILES)
    await finished(listener, BuildStore(database), first)
    runner.result = CommandResult(0)
    answer = await api.client.post("/functions/hello/builds", json={})
    assert answer.status_code == 202
    again = answer.json()
    assert answer.headers["Location"] == f"/builds/{again['id']}"
    assert (await finished(listener, BuildStore(database), again["id"])).status == "succeeded"
    assert (await deployer.function("hello")).live_version == 1
    listed = (await api.client.get("/functions/hello/builds?limit=1")).json()
    assert [item["id"] for item in listed["items"]] == [again["id"]]
    rest = (await api.client.get(f"/functions/hello/builds?limit=1&cursor={listed['next_cursor']}")).json()
    assert [item["id"] for item in rest["items"]] == [first]
    assert [row["action"] for row in await api.audit()] == ["build.create"]


async def test_a_rebuild_without_activation_leaves_live_alone(
    database: Database, api: Api, deployer: Deployer, listener: Listener, runner: Scripted
) -> None:
    await finished(listener, BuildStore(database), await deployer.deploy("hello", FILES))
    await finished(
        listener,
        BuildStore(database),
        await deployer.deploy("hello", {**FILES, "main.py": "# 2\n"}, activate=False),
    )
    again = await api.client.post("/functions/hello/builds", json={"version": 2, "activate": False})
    assert again.json()["activate"] is False
    await finished(listener, BuildStore(database), again.json()["id"])
    assert (await deployer.function("hello")).live_version == 1


async def test_a_queued_build_can_be_cancelled(api: Api, deployer: Deployer) -> None:
    build_id = await deployer.deploy("hello", FILES)
    answer = await api.client.post(f"/builds/{build_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    answer = await api.client.post(f"/builds/{build_id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")
    assert [row["action"] for row in await api.audit()] == ["build.cancel"]


async def test_what_cannot_be_built_is_refused(database: Database, api: Api, deployer: Deployer) -> None:
    build_id = await deployer.deploy("hello", FILES)
    answer = await api.client.post("/functions/hello/builds", json={})
    assert (answer.status_code, answer.json()["build_id"]) == (409, build_id)
    await database.run("UPDATE function_code SET compile_status = 'not_required'")
    answer = await api.client.post("/functions/hello/builds", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")
    for body, status in (({"version": 9}, 404), ({"version": "1"}, 400), ({"version": 0}, 400), ({"force": True}, 400)):
        assert (await api.client.post("/functions/hello/builds", json=body)).status_code == status
    for path in ("/builds/nonsense", "/builds/00000000-0000-7000-8000-000000000000", "/functions/nobody/builds"):
        assert (await api.client.get(path)).status_code == 404


async def test_builds_of_other_tenants_do_not_exist(api: Api, deployer: Deployer) -> None:
    """DB5: neither reading, nor following, nor cancelling detects them."""
    await api.tenant("other")
    build_id = await deployer.deploy("hello", FILES, scope=Scope("other"))
    for answer in (
        await api.client.get(f"/builds/{build_id}"),
        await api.client.get(f"/builds/{build_id}/logs"),
        await api.client.post(f"/builds/{build_id}/cancel"),
        await api.client.get("/functions/hello/builds"),
        await api.client.post("/functions/hello/builds", json={}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    theirs = await api.client.get(f"/builds/{build_id}", headers={"X-Nova-Tenant": "other"})
    assert theirs.json()["status"] == "queued"


async def test_a_viewer_reads_and_does_not_manage(api: Api, deployer: Deployer) -> None:
    build_id = await deployer.deploy("hello", FILES)
    headers = {"X-API-Key": await api.key("viewer")}
    assert (await api.remote.get(f"/builds/{build_id}", headers=headers)).status_code == 200
    assert (await api.remote.post(f"/builds/{build_id}/cancel", headers=headers)).status_code == 403
    assert (await api.remote.post("/functions/hello/builds", json={}, headers=headers)).status_code == 403
    assert (await api.remote.get(f"/builds/{build_id}")).status_code == 401
