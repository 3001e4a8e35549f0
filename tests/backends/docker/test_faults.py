"""BE1: whatever step of a start fails, or is waited for in vain, nothing of it stays."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import EgressRule, Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.docker.backend import DockerBackend
from nova.execution.backends.docker.doorway import Doorway
from nova.execution.backends.docker.engine import Engine, EngineRefused
from nova.execution.backends.docker.images import EngineImages
from nova.execution.backends.docker.place import Kind
from nova.execution.backends.docker.places import Places
from nova.execution.backends.docker.visits import Visits
from nova.execution.backends.sandbox.network import Network
from nova.execution.channel import DirectChannel
from nova.execution.channel_control import ControlLost
from tests.backends.docker import ground
from tests.backends.docker.case import Case
from tests.backends.harness import Maker

pytestmark = [pytest.mark.anyio, pytest.mark.root]

RULED = NetworkPolicy("strict", (EgressRule("192.0.2.1", 443), EgressRule("*.example.test")))
STEPS: dict[str, tuple[type, str, Exception]] = {
    "image": (EngineImages, "ensure", EngineRefused(500, "no space left on device")),
    "door": (Doorway, "_listen", OSError(24, "too many open files")),
    "create": (Engine, "create", EngineRefused(500, "no")),
    "start": (Engine, "start", EngineRefused(500, "no")),
    "arrival": (Doorway, "enter", OSError(24, "too many open files")),
    "lease": (Network, "lease", NovaError("capacity", "all network addresses are in use")),
    "hello": (DirectChannel, "_greet", ControlLost("the agent is gone")),
    "rules": (Network, "restrict", OSError(12, "out of memory")),
    "mount": (Visits, "mount", OSError(2, "no such file")),
}


@pytest.fixture(scope="module")
async def faulty(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Maker, Path, str]]:
    """No templates: each instance goes through every step."""
    if reason := ground.missing():
        pytest.skip(reason)
    folder, node = tmp_path_factory.mktemp("faults"), f"faults-{uuid.uuid4().hex[:6]}"
    backend = ground.backend(folder, node, templates=0)
    await backend.start()
    maker = Maker(Case(), backend, folder)
    await (await maker.load(maker.spec(network=RULED))).stop()
    yield maker, folder, node
    await backend.close()


def left(folder: Path, node: str) -> tuple[list[str], list[str], int]:
    """Containers, doors, and descriptors but for those of connections: the engine's client keeps some open."""
    doors = [path.name for path in (folder / "docker").iterdir() if path.is_dir()]
    held = [_kind(fd) for fd in os.listdir("/proc/self/fd")]
    return [found["Id"] for found in ground.containers(node)], doors, sum(kind != "socket" for kind in held)


def _kind(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
    except FileNotFoundError:
        return "socket"


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails(faulty: tuple[Maker, Path, str], step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maker, folder, node = faulty
    before = left(folder, node)
    owner, name, error = STEPS[step]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, _failing(getattr(owner, name), error))
        with pytest.raises(NovaError) as refused:
            await maker.backend.create(maker.spec(network=RULED))
    assert refused.value.code == "capacity"
    assert left(folder, node) == before


async def test_what_a_successor_clears_away_is_not_made_anew_as_a_folder(
    faulty: tuple[Maker, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE2: a container of a killed daemon may start while the next daemon empties the folder that both use."""
    maker, folder, node = faulty
    before = left(folder, node)
    file = folder / "docker" / "offline.conf"
    start = Engine.start

    async def start_late(engine: Engine, container: str) -> None:
        file.unlink()
        await start(engine, container)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "start", start_late)
        with pytest.raises(NovaError, match=r"offline\.conf") as refused:
            await maker.backend.create(maker.spec())
    assert (refused.value.code, file.exists()) == ("capacity", False)
    file.write_text("")
    assert left(folder, node) == before
    await (await maker.load()).stop()


def _failing(method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    async def fail_later(*_args: object, **_more: object) -> None:
        raise error

    def fail(*_args: object, **_more: object) -> None:
        raise error

    return fail_later if asyncio.iscoroutinefunction(method) else fail


@pytest.mark.parametrize("step", ["create", "start", "lease", "mount"])
async def test_a_caller_that_leaves_in_a_step(
    faulty: tuple[Maker, Path, str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step goes on to its end where it cannot be called off, and what it made is taken back."""
    maker, folder, node = faulty
    before = left(folder, node)
    owner, name, _ = STEPS[step]
    reached, method = asyncio.Event(), getattr(owner, name)

    async def slow(*args: object, **more: object) -> Any:
        reached.set()
        await asyncio.sleep(0.02)
        return await method(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, slow)
        creating = asyncio.create_task(maker.backend.create(maker.spec(network=RULED)))
        await asyncio.wait_for(reached.wait(), 30)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    assert left(folder, node) == before


async def test_limits_that_cannot_be_set_end_the_container(
    faulty: tuple[Maker, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that stood ready and cannot be given its limits serves nobody."""
    maker, folder, node = faulty
    backend = maker.backend
    assert isinstance(backend, DockerBackend)
    before = left(folder, node)
    ready = await _blank(backend, maker)
    monkeypatch.setattr(type(ready.group), "limit", _failing(lambda: None, OSError(16, "device or resource busy")))
    monkeypatch.setattr(backend, "_place", _given(ready))
    with pytest.raises(NovaError, match="busy"):
        await backend.create(maker.spec(Limits(memory_mb=200)))
    assert left(folder, node) == before


async def _blank(backend: DockerBackend, maker: Maker) -> Any:
    places = backend._places
    assert isinstance(places, Places)
    spec = maker.spec()
    return await places.boot(Kind(spec.runtime, spec.runtime_version, online=False))


def _given(place: Any) -> Callable[..., Any]:
    async def take(*_args: object) -> tuple[Any, bool]:
        return place, False

    return take
