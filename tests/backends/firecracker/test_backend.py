"""The backend's life on the host: what a machine has while it lives, and that nothing of it stays, whatever fails."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from nova.domain.function import EgressRule, Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec, LayerMount, VolumeMount, WorkerCall
from nova.execution.backends.firecracker import backend as backend_module
from nova.execution.backends.firecracker.api import FirecrackerApi
from nova.execution.backends.firecracker.backend import FirecrackerBackend, MicroVm
from nova.execution.backends.firecracker.jail import Jail, Programs
from nova.execution.backends.firecracker.machine import Machine
from nova.execution.backends.vm import backend as machines
from nova.execution.backends.vm import drives, shape
from nova.execution.backends.vm.network import VmNetwork
from nova.execution.channel import DirectChannel
from tests.agent.harness import spec_of
from tests.backends.firecracker import programs
from tests.backends.firecracker.hosting import OFFLINE, Ground, ask, ground, options_in
from tests.backends.vm.ground import Space

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("firecracker_here")]


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.fixture(scope="module")
async def backend(anyio_backend: str, place: Ground) -> AsyncIterator[FirecrackerBackend]:
    async with place.backend() as made:
        yield made
    assert place.leftovers() == []
    assert not place.space.do(lambda: [name for name in os.listdir("/sys/class/net") if name.startswith("novabr")])


async def make(backend: FirecrackerBackend, spec: InstanceSpec) -> MicroVm:
    return cast(MicroVm, await backend.create(spec))


@pytest.mark.host_side("firecracker", "invoke")
async def test_a_machine_has_its_drives_and_limits_and_answers_calls(
    backend: FirecrackerBackend, place: Ground
) -> None:
    spec = place.spec(limits=Limits(memory_mb=32, vcpus=0.5, tmp_mb=16, net_mbps=8))
    vm = await make(backend, spec)
    done = await vm.channel.init(spec_of("python"))
    assert done.init_us > 0
    result = await vm.channel.call(WorkerCall("r", b'{"a": 1}', b'{"request_id": "r"}', time.monotonic() + 10))
    assert json.loads(result.output or b"") == {"a": 1}
    config = ask(vm.machine.jail.root / "api.sock", "/vm/config")
    assert config["machine-config"]["mem_size_mib"] == 32 + shape.GUEST_MB
    assert config["machine-config"]["vcpu_count"] == 1
    assert {drive["drive_id"]: drive["is_read_only"] for drive in config["drives"]} == {"rootfs": True, "code": True}
    assert config["network-interfaces"][0]["tx_rate_limiter"]["bandwidth"]["size"] == 1_000_000
    assert (vm.machine.jail.root / drives.CODE).stat().st_mode & 0o777 == 0o440
    stats = await backend.stats(vm)
    assert stats.pids >= 2
    assert stats.memory_bytes > 1 << 17
    await backend.stop(vm, reason="test")
    await backend.stop(vm, reason="test")
    assert not vm.channel.usable
    assert (await backend.stats(vm)).pids == 0
    assert place.leftovers() == []


async def test_no_secret_is_where_others_can_read_it(
    backend: FirecrackerBackend, place: Ground, monkeypatch: Any
) -> None:
    """BE13."""
    token = os.urandom(32)
    monkeypatch.setattr("secrets.token_bytes", lambda *_: token)
    vm = await make(backend, place.spec())
    command = Path(f"/proc/{vm.machine.pid}/cmdline").read_bytes()
    environment = Path(f"/proc/{vm.machine.pid}/environ").read_bytes()
    for text in (place.told[-1].encode(), command, environment, vm.machine.console.tail()):
        assert token.hex().encode() not in text
    assert environment == b""
    await backend.stop(vm, reason="test")


@pytest.mark.host_side("firecracker", "crash")
async def test_a_machine_that_ends_by_itself_loses_its_channel(backend: FirecrackerBackend, place: Ground) -> None:
    vm = await make(backend, place.spec(network=OFFLINE))
    await vm.channel.init(spec_of("python"))
    os.kill(vm.machine.pid, signal.SIGKILL)
    await vm.machine.ended
    await backend.stop(vm, reason="test")
    assert place.leftovers() == []


STEPS: dict[str, tuple[Any, str]] = {
    "network": (VmNetwork, "lease"),
    "jail": (Jail, "make"),
    "shared files": (Jail, "share"),
    "drives": (drives, "make_drive"),
    "control group": (backend_module, "limit"),
    "process": (Machine, "launch"),
    "configuration": (FirecrackerApi, "configure"),
    "start": (FirecrackerApi, "start"),
    "agent": (MicroVm, "greet"),
}


@pytest.mark.host_side("firecracker", "failed create")
@pytest.mark.parametrize("step", STEPS)
async def test_a_fault_at_any_step_of_making_leaves_nothing(
    backend: FirecrackerBackend, place: Ground, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE1."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("injected")

    monkeypatch.setattr(*STEPS[step], fail)
    with pytest.raises(NovaError, match="injected") as failed:
        await backend.create(place.spec())
    assert failed.value.code == "dependency_unavailable"
    assert place.leftovers() == []
    assert place.ports() == []


async def test_whoever_stops_waiting_for_a_machine_leaves_none(backend: FirecrackerBackend, place: Ground) -> None:
    """BE1: at whatever moment."""
    for pause_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15):
        creating = asyncio.ensure_future(backend.create(place.spec()))
        await asyncio.wait({creating}, timeout=pause_s)
        creating.cancel()
        try:
            await backend.stop(await creating, reason="came in time")
        except asyncio.CancelledError:
            continue
    assert place.leftovers() == []
    assert place.ports() == []


STOPS: dict[str, tuple[type, str, set[str]]] = {
    "asking the agent": (DirectChannel, "stop", set()),
    "closing the channel": (DirectChannel, "close", set()),
    "ending the process": (Machine, "end", {"process", "group"}),
    "destroying the group": (backend_module, "destroy", {"group"}),  # type: ignore[dict-item]
    "removing the jail": (Jail, "remove", {"jail"}),
    "releasing the network": (VmNetwork, "release", {"port", "address"}),
}


@pytest.mark.host_side("firecracker", "stop")
@pytest.mark.parametrize("step", STOPS)
async def test_a_fault_at_a_step_of_stopping_does_not_keep_the_others_from_running(
    place: Ground, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE1: what the failed step left goes at the next start, all else at once."""
    owner, name, leaves = STOPS[step]
    real: Callable[..., Any] = getattr(owner, name)
    armed: list[bool] = []
    missed: list[tuple[Any, ...]] = []

    def fail(*given: Any, **named: Any) -> Any:
        if armed and not missed:
            missed.append(given)
            raise OSError("injected")
        return real(*given, **named)

    node = f"st{uuid.uuid4().hex[:5]}"
    monkeypatch.setattr(owner, name, fail)
    async with place.backend(node) as backend:
        vm = await make(backend, place.spec())
        armed.append(True)
        await backend.stop(vm, reason="test")
        assert {text.split()[0] for text in place.leftovers(node)} == leaves
        assert missed
        if step in ("releasing the network", "ending the process"):
            await real(*missed[0])  # descriptors of this very process
        vm.link.close()
    async with place.backend(node):
        assert place.leftovers(node) == []


@pytest.mark.host_side("firecracker", "volumes", "refused")
async def test_what_a_machine_cannot_have_is_refused_by_name(backend: FirecrackerBackend, place: Ground) -> None:
    """BE6."""
    folder = place.folder / "code"
    layers = tuple(LayerMount(folder, f"/layers/{number}") for number in range(7))
    with pytest.raises(NovaError, match="layers: a machine has at most 6"):
        await backend.create(place.spec(layers=layers))
    with pytest.raises(NovaError, match="mounts: "):
        await backend.create(place.spec(mounts=(VolumeMount(folder, "/mnt/data", read_only=False),)))
    rule = EgressRule(host="2001:db8::1", port=1, protocol="tcp")
    with pytest.raises(NovaError, match=r"egress_rules\[0\]"):
        await backend.create(place.spec(network=NetworkPolicy(egress_rules=(rule,))))
    assert place.leftovers() == []


@pytest.mark.host_side("firecracker", "layers")
async def test_layers_are_drives_after_the_code(backend: FirecrackerBackend, place: Ground) -> None:
    layers = (LayerMount(place.folder / "code", "/layers/0"), LayerMount(place.folder / "code", "/layers/1"))
    vm = await make(backend, place.spec(layers=layers, network=OFFLINE))
    assert "nova.mounts=vdc:/layers/0:ro,vdd:/layers/1:ro" in place.told[-1]
    config = ask(vm.machine.jail.root / "api.sock", "/vm/config")
    assert [drive["path_on_host"] for drive in config["drives"]][2:] == ["layer0.ext4", "layer1.ext4"]
    assert all(drive["is_read_only"] for drive in config["drives"])
    assert config["network-interfaces"] == []
    await backend.stop(vm, reason="test")


async def test_an_initrd_beside_the_kernel_is_booted_with_it(place: Ground) -> None:
    folder = place.folder / "with-initrd"
    folder.mkdir()
    (folder / "initrd").write_bytes(bytes(4096))
    programs.kernel(folder)
    async with place.backend(f"in{uuid.uuid4().hex[:5]}", kernel=folder / "vmlinux") as backend:
        vm = await make(backend, place.spec(network=OFFLINE))
        assert ask(vm.machine.jail.root / "api.sock", "/vm/config")["boot-source"]["initrd_path"] == "initrd"


async def test_a_guest_whose_agent_never_answers_is_given_up_and_its_console_kept(place: Ground) -> None:
    """The reason is honest, and the operator can read what the guest said."""
    node = f"gu{uuid.uuid4().hex[:5]}"
    backend = FirecrackerBackend(
        replace(place.options, node=node, boot_timeout_s=0.5), place.images(), home=place.space.descriptor
    )
    await backend.start()
    with pytest.raises(NovaError, match=r"the guest did not reach its agent within 0\.5 s"):
        await backend.create(place.spec())
    assert place.leftovers(node) == []
    (kept,) = place.options.log_dir.glob(f"{node}-*.log")
    assert b"Running Firecracker" in kept.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600
    await backend.close()


async def test_what_is_missing_is_a_reason_and_no_failure(place: Ground, tmp_path: Path) -> None:
    """BE11."""
    for changes, reason in (
        ({"kernel": tmp_path / "vmlinux"}, "there is no kernel for guests at .*vmlinux"),
        ({"programs": Programs(tmp_path / "firecracker", tmp_path / "jailer")}, "firecracker is not installed"),
        ({"runtimes": ()}, "nova runtime build python"),
    ):
        async with place.backend(f"mi{uuid.uuid4().hex[:5]}", **changes) as backend:
            capabilities = await backend.capabilities()
            assert not capabilities.available
            assert re.search(reason, capabilities.reason), capabilities.reason
            if "runtimes" not in changes:
                with pytest.raises(NovaError, match=reason):
                    await backend.create(place.spec())


# -- daemons that were killed ------------------------------------------------------------------------------------------

DAEMON = """
import asyncio, sys
from tests.backends.firecracker import test_backend
asyncio.run(test_backend.make_and_sleep(*sys.argv[1:]))
"""


async def make_and_sleep(folder: str, namespace: str, node: str) -> None:
    """A daemon with two machines, which are what is left when it is killed."""
    place = Ground(Path(folder), Space(os.open(namespace, os.O_RDONLY)), options_in(Path(folder)))
    async with place.backend(node) as backend:
        for policy in (NetworkPolicy(), OFFLINE):
            await backend.create(place.spec(network=policy))
        print("asleep", flush=True)
        await asyncio.sleep(600)


@pytest.mark.host_side("firecracker", "killed daemon")
async def test_machines_of_a_killed_daemon_are_gone_after_its_next_start_and_no_other_s(
    backend: FirecrackerBackend, place: Ground
) -> None:
    """BE2."""
    node = f"dead{uuid.uuid4().hex[:5]}"
    neighbour = await make(backend, place.spec())
    namespace = f"/proc/{os.getpid()}/fd/{place.space.descriptor}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DAEMON, str(place.folder), namespace, node), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while await process.stdout.readline() != b"asleep\n":
            assert process.returncode is None
    process.kill()
    await process.wait()
    kinds = [text.split()[0] for text in place.leftovers(node)]
    assert {kind: kinds.count(kind) for kind in ("process", "jail", "address", "vm-uid")} == {
        "process": 2,
        "jail": 2,
        "address": 1,
        "vm-uid": 2,
    }
    async with place.backend(node):
        assert place.leftovers(node) == []
    assert (await backend.stats(neighbour)).pids > 0
    assert await neighbour.channel.ping(5)
    await backend.stop(neighbour, reason="test")
    assert place.leftovers() == []
    async with asyncio.timeout(20):
        while place.ports():  # the kernel ends a namespace some time after its last process
            await asyncio.sleep(0.02)


async def test_an_instance_that_nobody_owns_any_more_is_stopped(
    backend: FirecrackerBackend, place: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, lost = await backend.create(place.spec(network=OFFLINE)), await backend.create(place.spec(network=OFFLINE))
    assert await backend.reconcile({kept.instance_id}) == []
    monkeypatch.setattr(machines, "RECONCILE_AGE_S", 0.0)
    assert await backend.reconcile({kept.instance_id}) == [lost.instance_id]
    assert await kept.channel.ping(5)
    await backend.stop(kept, reason="test")
