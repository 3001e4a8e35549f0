"""What is Docker's own: templates, what the engine is told, images, an engine that goes away. The rest is for the suite."""

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import EgressRule, Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.docker.backend import DockerBackend
from nova.execution.backends.docker.place import Place
from nova.execution.images import Images
from nova.runtimes.registry import Runtimes
from tests.backends.docker import ground
from tests.backends.docker.proxy import Proxy
from tests.backends.harness import TIGHT, Function, Maker
from tests.backends.test_conformance import until

pytestmark = [pytest.mark.anyio, pytest.mark.root]

SEEN = """
import os


def handler(event):
    usage = os.statvfs("/tmp")
    with open("/etc/resolv.conf") as file:
        names = file.read()
    return {
        "tmp_mb": usage.f_blocks * usage.f_frsize >> 20,
        "code": sorted(os.listdir("/code")),
        "resolv": names,
        "environ": " ".join(os.environ),
        "cpus": os.cpu_count(),
    }
"""


@pytest.fixture(scope="module")
def seer(maker: Maker) -> Maker:
    """Makes instances that tell what they see."""
    return replace(maker, code=maker.case.artifact(SEEN, maker.folder))


async def see(function: Function) -> dict[str, Any]:
    found: dict[str, Any] = await function.do("")
    await function.stop()
    return found


async def template(docker: DockerBackend, maker: Maker, limits: Limits = TIGHT, **more: Any) -> Function:
    """A function in a container that stood ready; the first one of its kind has to wait for it."""
    spec = maker.spec(limits, **more)
    await (await maker.load(spec)).stop()
    counts = docker.template_counts
    await until(lambda: all(ready >= wanted for ready, wanted in counts().values()))
    function = await maker.load(replace(spec, instance_id=f"{spec.instance_id}-2"))
    assert function.instance.source == "template"
    return function


async def test_a_template_takes_the_limits_and_the_code_of_its_function(docker: DockerBackend, seer: Maker) -> None:
    limits = Limits(memory_mb=200, pids=77, tmp_mb=9, vcpus=0.5)
    function = await template(docker, seer, limits)
    place = function.instance
    assert isinstance(place, Place)
    groups = Path("/sys/fs/cgroup")
    folders = dict(_groups(place.pid))
    if (groups / "cgroup.controllers").exists():
        folder = groups / folders[""]
        held = [(folder / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]
        assert held == [str(200 << 20), "77", "50000 100000"]
    else:
        memory = (groups / "memory" / folders["memory"] / "memory.limit_in_bytes").read_text()
        pids = (groups / "pids" / folders["pids"] / "pids.max").read_text()
        quota = (groups / "cpu" / folders["cpu"] / "cpu.cfs_quota_us").read_text()
        assert [memory.strip(), pids.strip(), quota.strip()] == [str(200 << 20), "77", "50000"]
    stats = await docker.stats(place)
    assert (stats.memory_bytes > 1 << 20, stats.pids >= 2, stats.oom_kills) == (True, True, 0)
    seen = await see(function)
    assert (seen["tmp_mb"], seen["code"], seen["resolv"]) == (9, ["main.py"], "")
    assert await docker.stats(place) == type(stats)()


def _groups(pid: int) -> list[tuple[str, str]]:
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return [(name, path.lstrip("/")) for _, names, path in lines for name in names.split(",")]


async def test_what_the_engine_shows_has_every_wall_and_no_secret(seer: Maker) -> None:
    """BE13: neither the token nor a variable of the function is in anything that the engine keeps."""
    function = await seer.load(env={"SECRET": "hush-hush"})
    place = function.instance
    assert isinstance(place, Place)
    shown = ground.ask(f"/containers/{place.container}/json")
    host = shown["HostConfig"]
    assert (await see(function))["environ"].find("NOVA_AGENT") == -1
    assert "hush" not in json.dumps(shown)
    assert [entry.partition("=")[0] for entry in shown["Config"]["Env"] if entry.startswith("NOVA")] == [
        "NOVA_AGENT_LISTEN",
        "NOVA_AGENT_TOKEN_SHA256",
        "NOVA_INSTANCE_ID",
        "NOVA_AGENT_RELOAD_DIR",
    ]
    assert shown["Config"]["User"] == "65534:65534"
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
    assert (host["NetworkMode"], host["Memory"], host["MemorySwap"]) == (
        "none",
        TIGHT.memory_mb << 20,
        TIGHT.memory_mb << 20,
    )
    assert host["SecurityOpt"][0] == "no-new-privileges:true"
    assert all(mount["ReadOnly"] for mount in host["Mounts"])


async def test_a_function_with_rules_by_name_asks_the_name_server_of_its_own(seer: Maker) -> None:
    policy = NetworkPolicy("strict", (EgressRule("*.example.test", 443),))
    seen = await see(await seer.load(seer.spec(network=policy)))
    assert seen["resolv"].splitlines()[0] == "nameserver 127.0.0.53"
    open_policy = await see(await seer.load(seer.spec(network=NetworkPolicy())))
    assert "127.0.0.53" not in open_policy["resolv"]


async def test_a_missing_image_is_refused_with_the_command_that_makes_it(seer: Maker, tmp_path: Path) -> None:
    """BE11"""
    backend = DockerBackend(ground.options(tmp_path, "no-image"), Images(tmp_path / "none", Runtimes()))
    await backend.start()
    try:
        capabilities = await backend.capabilities()
        assert (capabilities.available, capabilities.runtimes) == (True, frozenset())
        with pytest.raises(NovaError, match="nova runtime build python") as refused:
            await backend.create(seer.spec())
        assert refused.value.code == "runtime_unavailable"
    finally:
        await backend.close()


@dataclass(frozen=True)
class OneImage:
    """An image that is not a runtime's."""

    path: Path
    digest: str = "0" * 64

    def find(self, runtime: str, form: str) -> "OneImage":
        return self

    require = find


async def test_a_container_whose_agent_does_not_start_leaves_nothing(seer: Maker, tmp_path: Path) -> None:
    """BE1: the refusal holds what the engine said."""
    tar = tmp_path / "empty.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    backend = DockerBackend(ground.options(tmp_path, "broken", image_prefix="nova-broken-", templates=0), OneImage(tar))
    await backend.start()
    try:
        with pytest.raises(NovaError, match="python3") as refused:
            await backend.create(seer.spec())
        assert refused.value.code == "capacity"
        await until(lambda: ground.containers("broken") == [])
        assert not [path for path in (tmp_path / "docker").iterdir() if path.is_dir()]
    finally:
        await backend.close()
    ground.ask("/images/nova-broken-python:000000000000?force=1", "DELETE")


async def test_without_root_containers_are_made_for_their_function_and_stay_offline(
    seer: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE6: what needs the host's own hand is refused by name; the rest is the engine's."""
    backend = ground.backend(tmp_path, "no-root")
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 1000)
        await backend.start()
    own = replace(seer, backend=backend)
    try:
        capabilities = await backend.capabilities()
        assert (capabilities.template, capabilities.enforces["network_rules"]) == (False, "no")
        function = await own.load(own.spec(Limits(tmp_mb=9)))
        assert function.instance.source == "boot"
        seen = await see(function)
        assert (seen["tmp_mb"], seen["code"]) == (9, ["main.py"])
        with pytest.raises(NovaError, match="network_policy"):
            await backend.create(own.spec(network=NetworkPolicy()))
    finally:
        await backend.close()


async def test_an_engine_that_goes_away_is_told_of_and_used_again_when_it_is_back(seer: Maker, tmp_path: Path) -> None:
    way = Proxy(tmp_path / "engine.sock", ground.engine().folder / "docker.sock")
    backend = ground.backend(tmp_path, "cut", host=f"unix://{way.path}")
    await backend.start()
    own = replace(seer, backend=backend)
    try:
        missing = await backend.capabilities()
        assert not missing.available
        assert str(way.path) in missing.reason
        await way.open()
        await until(_answers(backend))
        function = await own.load()
        await way.cut()
        await until(lambda: backend.reason != "")
        with pytest.raises(NovaError, match=r"was lost|no Docker engine") as refused:
            await backend.create(own.spec())
        assert refused.value.code == "unsupported"
        assert (await function.do(""))["code"] == ["main.py"], "calls do not pass the engine"
        await function.stop()
        await way.open()
        await until(_answers(backend))
        await until(lambda: not _asleep(backend, function))
        assert (await see(await own.load()))["code"] == ["main.py"]
    finally:
        await backend.close()
        await way.cut()
    assert ground.containers("cut") == []


def _answers(backend: DockerBackend) -> Callable[[], bool]:
    return lambda: backend.reason == ""


def _asleep(backend: DockerBackend, function: Function) -> bool:
    """Whether the container of an instance that was stopped without the engine is still there."""
    place = function.instance
    assert isinstance(place, Place)
    return place.container in [found["Id"] for found in ground.containers("cut")]
