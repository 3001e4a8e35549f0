"""Functions that are kept loaded, and the instances that come from them."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nova.api import snapshots
from nova.clock import SYSTEM_CLOCK
from nova.config import MetricsSettings
from nova.domain.identity import Scope
from nova.execution.exposition import SERIES
from nova.execution.metrics import Metrics
from nova.execution.sealing import IDLE_S, KeptFunction, Sealer
from nova.execution.sealing_answers import SnapshotHandlers
from tests.execution.stack import RealStack, real_stack
from tests.http.harness import management
from tests.mock_clock import MockClock

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SLOW = """
import os, random, ssl, time, uuid
time.sleep(0.02)
LOADED = uuid.uuid4().hex
told = []
def before_snapshot():
    told.append("before")
def after_restore():
    told.append("after")
    print("restored")
def handler(event, context):
    if event and event.get("keep"):
        told.append(event["keep"])
    return {
        "loaded": LOADED, "told": told, "own": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
        "drawn": [random.random(), ssl.RAND_bytes(8).hex()], "tmp": os.listdir("/tmp"),
    }
"""


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def mock_clock() -> MockClock:
    return MockClock()


class Stack:
    def __init__(self, stack: RealStack, sealer: Sealer, metrics: Metrics) -> None:
        self.stack, self.sealer, self.metrics = stack, sealer, metrics

    async def call(self, name: str = "hello", payload: bytes = b"{}") -> tuple[str, Any]:
        """Whether the instance came from a snapshot or loaded the function itself, and the answer."""
        result = await self.stack.invoke(payload, name)
        assert result.error is None, result.error
        return "snapshot" if result.source == "snapshot" else "loaded", json.loads(result.output or b"null")

    async def cold(self, name: str = "hello") -> tuple[str, Any]:
        """As :meth:`call`, after every instance of the function has ended."""
        self.stack.fleet.evict(Scope(), name, ())
        return await self.call(name)

    async def settled(self, name: str = "hello") -> KeptFunction:
        await eventually(lambda: any(kept.state != "making" for kept in self.sealer.of(Scope(), name)))
        return self.sealer.of(Scope(), name)[0]


@pytest.fixture
async def kept(
    request: pytest.FixtureRequest, pg_dsn: str, tmp_path: Path, mock_clock: MockClock
) -> AsyncIterator[Stack]:
    """Its parameter: how many milliseconds of loading are slow."""
    metrics = Metrics(MetricsSettings())
    sealer = Sealer(mock_clock, metrics, slow_import_us=1000 * getattr(request, "param", 15), most=2)
    async with real_stack(pg_dsn, tmp_path, sealer=sealer) as stack:
        yield Stack(stack, sealer, metrics)


async def test_the_life_of_a_snapshot(kept: Stack, mock_clock: MockClock) -> None:
    """PO11, PO13, BE9: taken after the first slow load and before any call; instances from it share nothing that is random,
    hear of it, and are called by their own names; a change and idleness end it."""
    await kept.stack.deploy(SLOW)
    source, first = await kept.call(payload=b'{"keep": "a caller\'s secret"}')
    assert (source, first["told"]) == ("loaded", ["a caller's secret"])
    found = await kept.settled()
    assert (found.state, found.reason, found.hits) == ("ready", "", 0)
    assert found.memory_bytes > 1 << 20
    answers = [await kept.cold() for _ in range(3)]
    assert [source for source, _ in answers] == ["snapshot"] * 3
    assert {tuple(answer["told"]) for _, answer in answers} == {("before", "after")}
    assert {answer["loaded"] for _, answer in answers} == {answers[0][1]["loaded"]} != {first["loaded"]}
    assert len({answer["own"] for _, answer in answers}) == 3
    for number in range(2):
        assert len({answer["drawn"][number] for _, answer in answers}) == 3
    assert answers[0][1]["tmp"] == []
    assert found.hits == 3
    assert sum(kept.metrics.restores[("sandbox",)].counts) == 3
    assert {"snapshots_hit_total", "snapshot_restore_milliseconds"} <= set(SERIES)

    await kept.stack.deploy(SLOW, env={"COLOUR": "red"})
    assert (await kept.call())[0] == "loaded", "another environment never meets an old snapshot"
    await eventually(lambda: [item.snapshot.version for item in kept.sealer.of(Scope())] == [2])
    assert (await kept.settled()).state == "ready"
    await mock_clock.advance(IDLE_S)
    await kept.sealer.sweep()
    assert kept.sealer.of(Scope()) == []
    assert (await kept.cold())[0] == "loaded"


REFUSED = {
    "threads": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "1 threads",
    ),
    "sockets": ("import socket\ns = socket.socket()", "a socket is open"),
    "files": ("f = open('/dev/null')", "/dev/null is open"),
    "children": ("import subprocess\np = subprocess.Popen(['sleep', '60'])", "a child process runs"),
    "tmp": ("open('/tmp/cache', 'w').close()", "there are files in /tmp"),
    "memory": ("import mmap\nm = mmap.mmap(-1, 4096)", "memory is shared"),
    "hook": ("def before_snapshot(): raise ValueError('not now')", "it did not load: not now"),
    "restore": ("def after_restore(): raise ValueError('not here')", "a restored instance did not start: not here"),
}


async def test_what_cannot_be_kept_says_so(kept: Stack) -> None:
    """Whatever forks would share rules a function out, is named, and costs nobody a call."""
    for name, (line, reason) in REFUSED.items():
        await kept.stack.deploy(f"import time\ntime.sleep(0.02)\n{line}\ndef handler(e, c): return 1", name)
        assert await kept.call(name) == ("loaded", 1)
        found = await kept.settled(name)
        assert await kept.cold(name) == ("loaded", 1)
        assert found.state == "refused"
        assert found.reason.startswith(reason)
    assert len(kept.sealer.of(Scope())) == len(REFUSED)


@pytest.mark.parametrize("kept", [500], indirect=True)
async def test_asking_for_snapshots(kept: Stack) -> None:
    """Functions that load fast or say ``snapshot: off`` have none by themselves; over HTTP one is made, listed, used and
    dropped, and refused by name where it cannot be."""
    stack = kept.stack
    await stack.deploy("def handler(e, c): return 1", "fast")
    await stack.deploy("def handler(e, c): return 2", "fast")
    await stack.deploy("import time\ntime.sleep(0.6)\ndef handler(e, c): return 1", "never", snapshot="off")
    await stack.deploy("print(1)", "script", entry_kind="script", mode="process")
    for name in ("fast", "never"):
        assert (await kept.call(name))[0] == "loaded"
    assert kept.sealer.of(Scope()) == []
    handlers = SnapshotHandlers(kept.sealer, stack.catalog, stack.booter, SYSTEM_CLOCK, "here")
    async with management(stack.db, [handlers], snapshots.ROUTES) as api:
        url = "/functions/{}/snapshot"
        for name, told in {"never": "snapshot: it is off", "script": "a script is run anew"}.items():
            refused = await api.client.post(url.format(name))
            assert (refused.status_code, refused.json()["code"]) == (422, "unsupported")
            assert told in refused.json()["detail"]
        assert (await api.client.post(url.format("nobody"))).status_code == 404
        assert (await api.client.delete(url.format("fast"))).status_code == 404
        for version in (1, 2):
            made = await api.client.post(url.format("fast"), params={"version": version})
            assert (made.status_code, made.json()["version"]) == (202, version)
        await eventually(lambda: [item.state for item in kept.sealer.of(Scope())] == ["ready"] * 2)
        assert await kept.cold("fast") == ("snapshot", 2)

        first = (await api.client.get("/snapshots", params={"limit": 1, "function": "fast"})).json()
        rest = (await api.client.get("/snapshots", params={"cursor": first["next_cursor"]})).json()
        [newest], [oldest] = first["items"], rest["items"]
        assert rest["next_cursor"] is None
        assert (newest["version"], newest["hits"], newest["status"]) == (2, 1, "ready")
        assert (newest["backend"], newest["kind"], newest["node"]) == ("sandbox", "zygote", "here")
        assert newest["memory_mb"] > 1
        assert oldest["version"] == 1
        none = (await api.client.get("/snapshots", params={"function": "never"})).json()
        assert none["items"] == []

        assert (await api.client.delete(url.format("fast"), params={"version": 2})).status_code == 204
        assert [item.snapshot.version for item in kept.sealer.of(Scope())] == [1]
        assert await kept.cold("fast") == ("loaded", 2)

        await stack.deploy("def handler(e, c): return 3", "other")
        for name in ("other", "fast"):
            assert (await api.client.post(url.format(name))).status_code == 202
            await eventually(lambda: all(item.state == "ready" for item in kept.sealer.of(Scope())))
        left = {(item.snapshot.name, item.snapshot.version) for item in kept.sealer.of(Scope())}
        assert left == {("other", 1), ("fast", 2)}, "two at most; the one used longest ago has gone"
