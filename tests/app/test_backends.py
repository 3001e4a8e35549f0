"""Every backend that is wired can be named, and nothing else can."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from tests.execution.fakes import FakeBackend

from nova.api.functions import Backend as Named
from nova.app.backends import ENTRIES, WASM, Ground, candidates
from nova.app.cluster import _capabilities as read_capabilities
from nova.app.cluster import advertisement
from nova.config import ExecutionSettings, Settings
from nova.execution.backends.advertised import AdvertisedBackends
from nova.execution.backends.base import STRENGTH, Capabilities
from nova.execution.backends.probing import Candidate
from nova.execution.backends.router import BackendRouter
from nova.execution.images import Images
from nova.runtimes.registry import Runtimes
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.nodes import NodeStore
from nova.work.membership import Membership

pytestmark = pytest.mark.anyio


def test_names() -> None:
    assert set(get_args(Named)) == {"auto", "sandbox", *ENTRIES}
    default = ExecutionSettings.model_fields["backend"].annotation
    assert set(get_args(default)) == set(get_args(Named)) - {WASM}
    assert set(ENTRIES) <= set(STRENGTH)


async def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """BE11: an engine that is not there makes its backend unavailable with a reason, and nothing is imported for it."""
    settings = Settings()
    settings.docker.host = f"unix://{tmp_path}/nobody.sock"
    runtimes = Runtimes()
    ground = Ground(settings, runtimes, Images(tmp_path, runtimes), FakeBackend(), tmp_path, "node", 0)
    docker = next(each for each in candidates(ground) if each.name == "docker")
    found = await docker.look()
    assert (found.available, found.isolation) == (False, "container")
    assert "nobody.sock" in found.reason
    assert docker.backend is None
    settings.docker.host = ""
    another = next(each for each in candidates(ground) if each.name == "docker")
    assert (await another.look()).reason == "docker.host is empty"


def test_comets_of_other_versions_are_understood() -> None:
    """What an older one leaves out it cannot do; what a newer one adds nobody asks for."""
    router = AdvertisedBackends(default="auto", default_isolation="egress-only", strict_limits=False)
    mine = Capabilities(True, "", "container", {"memory": "hard"}, frozenset({"python"}), strength=30, layers=True)
    router.learn({"sandbox": mine})
    said = advertisement(router)["backends"]["sandbox"]
    assert read_capabilities(json.loads(json.dumps(said))) == mine
    old = {name: said[name] for name in ("available", "reason", "isolation", "enforces", "runtimes")}
    assert read_capabilities(old) == replace(mine, strength=0, layers=False)
    assert read_capabilities({**said, "teleports": True}) == mine


async def test_a_comet_tells_what_it_finds_later(database: Database) -> None:
    """The row of a process follows its backends; the control plane refuses by it."""
    nodes = NodeStore(database)
    listener = Listener(database.dsn)
    docker = FakeBackend()
    docker.name = "docker"
    router = BackendRouter([], later=[Candidate.of(docker)])
    member = Membership(
        nodes,
        listener,
        plane="comet",
        name="east",
        address="10.0.0.1:9090",
        info={"cpu_cores": 4, **advertisement(router)},
    )
    router.on_change(lambda: member.tell(advertisement(router)))
    async with ServiceGroup() as services:
        await services.start(listener)
        await services.start(member)
        [row] = await nodes.alive("comet")
        assert row.info == {"cpu_cores": 4, "backends": {}}
        await router.look()
        async with asyncio.timeout(20):
            while not (await nodes.alive("comet"))[0].info["backends"]:
                await asyncio.sleep(0.02)
        [row] = await nodes.alive("comet")
        assert (row.info["cpu_cores"], row.info["backends"]["docker"]["available"]) == (4, True)
    await router.close()
