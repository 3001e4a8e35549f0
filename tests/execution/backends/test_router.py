"""Which backend a function gets, and the refusal by name."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import EgressRule, Limits, NetworkPolicy
from nova.domain.needs import Needs
from nova.errors import NovaError
from nova.execution.backends.base import Capabilities
from nova.execution.backends.probing import AGAIN_S, Candidate, Proofs
from nova.execution.backends.router import BackendRouter
from tests.execution.fakes import FakeBackend, make_snapshot
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio
OFFLINE = NetworkPolicy(isolation_mode="strict")
PLAIN = Needs("python", Limits(), OFFLINE)


class Host(FakeBackend):
    """A backend with given capabilities."""

    def __init__(self, name: str = "sandbox", **changes: Any) -> None:
        super().__init__()
        self.name = name
        self.changes = changes

    async def capabilities(self) -> Capabilities:
        full = await super().capabilities()
        enforces = {**full.enforces, **self.changes.get("enforces", {})}
        return replace(full, **{**self.changes, "enforces": enforces})


async def router(*backends: Host, **options: Any) -> BackendRouter:
    made = BackendRouter(backends, **options)
    await made.start()
    return made


async def test_auto_takes_the_first_that_fits() -> None:
    weak, strong = Host("weak", enforces={"network_rules": "no"}), Host("strong")
    routes = await router(weak, strong)
    assert await routes.select(make_snapshot(network=OFFLINE)) is weak
    assert await routes.select(make_snapshot()) is strong
    assert await routes.select(make_snapshot(backend="strong", network=OFFLINE)) is strong


@pytest.mark.parametrize(
    ("resource", "field", "snapshot"),
    [
        ("memory", "memory_mb", make_snapshot()),
        ("pids", "limits.pids", make_snapshot(limits=Limits(pids=40))),
        ("disk", "limits.tmp_mb", make_snapshot()),
        ("cpu", "limits.vcpus", make_snapshot(limits=Limits(vcpus=0.5))),
        ("net_io", "limits.net_mbps", make_snapshot(limits=Limits(net_mbps=8))),
        ("network_rules", "network_policy", make_snapshot()),
        (
            "network_rules",
            "network_policy",
            make_snapshot(network=NetworkPolicy(isolation_mode="strict", egress_rules=(EgressRule("10.0.0.1"),))),
        ),
    ],
)
async def test_what_cannot_be_enforced_is_refused_by_name(resource: str, field: str, snapshot: Any) -> None:
    """BE6: the refusal names the backend and each field."""
    routes = await router(Host(enforces={resource: "no"}))
    with pytest.raises(NovaError) as refused:
        await routes.select(snapshot)
    assert (refused.value.code, refused.value.status) == ("unsupported", 422)
    assert [error.field for error in refused.value.errors] == [field]
    assert "sandbox" in refused.value.detail


async def test_a_soft_limit_is_refused_only_when_limits_are_strict() -> None:
    soft = {"memory": "soft"}
    assert await (await router(Host(enforces=soft))).check("auto", PLAIN) == "sandbox"
    with pytest.raises(NovaError, match="memory_mb"):
        await (await router(Host(enforces=soft), strict_limits=True)).check("auto", PLAIN)


async def test_a_cpu_share_that_nobody_asked_for_is_not_refused() -> None:
    routes = await router(Host(enforces={"cpu": "no"}))
    assert await routes.check("sandbox", PLAIN) == "sandbox"


async def test_unknown_unavailable_and_unfit_backends_say_why() -> None:
    routes = await router(Host("off", available=False, reason="no user namespaces"), Host("py", runtimes={"python"}))
    with pytest.raises(NovaError, match="'docker' is not a backend"):
        await routes.check("docker", Needs("python", Limits()))
    with pytest.raises(NovaError, match="no user namespaces"):
        await routes.check("off", Needs("python", Limits()))
    with pytest.raises(NovaError, match="py does not run node"):
        await routes.check("auto", Needs("node", Limits()))


async def test_the_default_network_is_what_the_host_can_hold() -> None:
    filtering, blind = await router(Host()), await router(Host(enforces={"network_rules": "no"}))
    assert filtering.default_network("auto") == NetworkPolicy()
    assert blind.default_network("auto").offline
    strict = await router(Host(), default_isolation="strict")
    assert strict.default_network("sandbox").offline
    assert await blind.check("auto", Needs("python", Limits())) == "sandbox", "no policy: no refusal"


# -- backends that are looked at later ---------------------------------------------------------------------------------


class Slow(Host):
    """One that says when it is started, and may fail to."""

    def __init__(self, name: str, error: Exception | None = None, **changes: Any) -> None:
        super().__init__(name, **changes)
        self.started = 0
        self.error_at_start = error

    async def start(self) -> None:
        self.started += 1
        if self.error_at_start is not None:
            raise self.error_at_start


async def test_a_backend_is_started_when_it_is_asked_for() -> None:
    """``nova up`` waits for none of them; whoever names one does, once."""
    docker, idle = Slow("docker"), Slow("idle")
    made = BackendRouter([Host()], later=[Candidate.of(docker), Candidate.of(idle)])
    await made.start()
    assert set(made.capabilities) == {"sandbox"}
    named = await asyncio.gather(*(made.check("docker", PLAIN) for _ in range(5)))
    assert (set(named), docker.started, idle.started) == ({"docker"}, 1, 0)
    assert await made.select(make_snapshot(backend="docker", network=OFFLINE)) is docker
    told: list[int] = []
    made.on_change(lambda: told.append(1))
    await made.look()
    assert (idle.started, set(made.capabilities), told) == (1, {"sandbox", "docker", "idle"}, [1])
    await made.close()


async def test_one_that_fails_to_start_stops_nobody() -> None:
    """BE11: it is listed with its reason, also when it is the default; the others serve."""
    broken = Slow("docker", RuntimeError("no engine"))
    made = BackendRouter([Host()], later=[Candidate.of(broken)], default="docker")
    await made.start()
    assert made.capabilities["docker"].reason == "no engine"
    with pytest.raises(NovaError, match="docker is not available here: no engine"):
        await made.check("auto", PLAIN)
    assert await made.check("sandbox", PLAIN) == "sandbox"
    await made.close()


async def test_a_backend_that_comes_up_later_is_found() -> None:
    clock = MockClock()
    docker = Slow("docker", available=False, reason="the engine is down")
    made = BackendRouter([], later=[Candidate("docker", lambda: docker, clock=clock)], clock=clock)
    await made.start()
    with pytest.raises(NovaError, match="the engine is down"):
        await made.check("docker", PLAIN)
    docker.changes = {}
    await clock.advance(AGAIN_S + 1)
    assert await made.check("docker", PLAIN) == "docker"
    assert docker.started == 1
    await made.close()


async def test_auto_takes_the_strongest() -> None:
    made = await router(Host("docker", strength=20), Host("sandbox", strength=30), Host("wasm", runtimes={"wasm"}))
    assert await made.check("auto", PLAIN) == "sandbox"
    with pytest.raises(NovaError, match="wasm does not run python"):
        await made.check("wasm", PLAIN)


async def test_runtimes_decide_where_auto_leads() -> None:
    """A runtime that one backend alone serves gets that one, and its default network."""
    host = Host("sandbox", strength=30, runtimes=frozenset({"python"}))
    wasm = Host("wasm", runtimes=frozenset({"wasm"}), enforces={"network_rules": "no"})
    made = BackendRouter([host], later=[Candidate.of(wasm)])
    await made.start()
    await made.ready("auto", "wasm")
    assert made.default_network("auto", "wasm").offline
    assert not made.default_network("auto", "python").offline
    assert await made.check("auto", Needs("wasm", Limits())) == "wasm"
    await made.close()


async def test_layers_and_volumes_are_refused_by_name() -> None:
    """BE6"""
    made = await router(Host(layers=True))
    assert await made.check("sandbox", replace(PLAIN, layers=True)) == "sandbox"
    with pytest.raises(NovaError, match="mounts: sandbox has none"):
        await made.check("sandbox", replace(PLAIN, volumes=True))


# -- machines: a device node is no proof -------------------------------------------------------------------------------


async def machines(tmp_path: Path, vm: Host, program: Path) -> BackendRouter:
    proofs = Proofs(tmp_path / "proofs.json", {"vm": lambda: [program]})
    made = BackendRouter([vm, Host("sandbox", strength=30)], proofs=proofs)
    await made.start()
    return made


async def settled(made: BackendRouter) -> None:
    while tasks := [task for task in asyncio.all_tasks() if task.get_name() == "backends.prove"]:
        await asyncio.wait(tasks)


async def test_a_machine_counts_once_one_has_booted(tmp_path: Path) -> None:
    """It is tried in the background; the next daemon knows, until a program or image is another."""
    program = tmp_path / "program"
    program.write_text("one")
    vm = Host("vm", strength=50, isolation="vm")
    made = await machines(tmp_path, vm, program)
    assert await made.check("vm", PLAIN) == "vm", "who names it tries it himself"
    assert (await made.check("auto", PLAIN), vm.created) == ("sandbox", 0)
    await settled(made)
    assert (vm.created, len(vm.stopped)) == (1, 1)
    assert await made.check("auto", PLAIN) == "vm"
    await made.close()
    again = Host("vm", strength=50, isolation="vm")
    made = await machines(tmp_path, again, program)
    assert (await made.check("auto", PLAIN), again.created) == ("vm", 0)
    await made.close()
    program.write_text("another")
    made = await machines(tmp_path, again, program)
    assert await made.check("auto", PLAIN) == "sandbox"
    await made.close()


async def test_a_machine_that_does_not_boot_is_said_to(tmp_path: Path) -> None:
    vm = Host("vm", strength=50, isolation="vm")
    vm.error = NovaError("capacity", "the kernel panicked")
    made = await machines(tmp_path, vm, tmp_path / "none")
    await made.check("auto", PLAIN)
    await settled(made)
    assert await made.check("auto", PLAIN) == "sandbox"
    assert made.capabilities["vm"].reason == "a guest did not boot: the kernel panicked"
    with pytest.raises(NovaError, match="the kernel panicked"):
        await made.check("vm", PLAIN)
    await made.close()
