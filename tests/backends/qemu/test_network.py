"""The network of emulated machines, booted and from a template: real packets of a real guest. Which of them pass under which
policy is the matter of the suite for all backends."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nova.domain.function import EgressRule, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.qemu.backend import QemuBackend, QemuVm
from nova.execution.backends.vm.leases import Leases
from nova.execution.backends.vm.network import VmNetwork
from tests.backends.harness import TIGHT, Function, Maker, write_code
from tests.backends.qemu import case as qemu_case
from tests.backends.qemu import ground
from tests.execution.backends.sandbox.world import BULK_BYTES, BULK_PORT, World, world

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(ground.missing()), reason=ground.missing()),
    pytest.mark.skipif(os.geteuid() != 0, reason="making interfaces needs root"),
]

MBPS = 10
_BURST_LEAST = 64 << 10
LEAST_S = (BULK_BYTES - _BURST_LEAST) / (MBPS * 125_000) * 0.95
CODE = """
import os, socket, time


def handler(event):
    if event["do"] == "reach":
        try:
            socket.create_connection((event["host"], event["port"]), 1).close()
        except OSError:
            return False
        return True
    if event["do"] == "about":
        with open("/etc/resolv.conf") as file:
            return {"interfaces": sorted(os.listdir("/sys/class/net")), "resolver": file.read().split()}
    took = []
    for way in (b"u", b"d"):
        with socket.create_connection((event["host"], event["port"]), 10) as sock:
            sock.settimeout(30)
            began = time.monotonic()
            sock.sendall(way)
            if way == b"u":
                sock.sendall(bytes(event["size"]))
                sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
            took.append(time.monotonic() - began)
    return took
"""


@dataclass
class Online:
    maker: Maker
    backend: QemuBackend
    folder: Path
    code: Path

    async def load(self, policy: NetworkPolicy, net_mbps: int = 0) -> Function:
        spec = self.maker.spec(replace(TIGHT, net_mbps=net_mbps), policy)
        return await self.maker.load(replace(spec, code=self.code))

    def ports(self) -> list[str]:
        """Ends of machines at the bridge."""
        return [name for _, name in socket.if_nameindex() if name.startswith(f"{self.backend._options.bridge}-")]

    def left(self) -> list[str]:
        node = self.backend._options.node
        return ground.processes(node) + ground.groups(node) + ground.files(self.folder) + self.ports()

    async def rest(self) -> None:
        """Until there is a template, and nothing is under way."""
        async with asyncio.timeout(120):
            while not [*self.folder.glob("snapshots/*.templates/*/state")] or self.left():
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with world() as place:
        yield place


@pytest.fixture(scope="module")
async def online(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Online]:
    folder = tmp_path_factory.mktemp("network")
    backend = ground.backend(folder, f"n-{secrets.token_hex(3)}", templates=True)
    await backend.start()
    if (await backend.capabilities()).enforces["network_rules"] != "hard":
        await backend.close()
        pytest.skip("this host cannot filter the network of machines")
    maker = Maker(qemu_case.Case(), backend, folder)
    made = Online(maker, backend, folder, write_code(CODE, folder))
    yield made
    await backend.close()
    assert made.left() == []
    assert backend._options.bridge not in [name for _, name in socket.if_nameindex()]


async def test_each_machine_has_its_own_policy_and_bandwidth(online: Online, outside: World) -> None:
    """BE3, PO14: the one that boots and those that go on from its template; what one may is nothing to the other."""
    bulk = {"host": outside.near, "port": BULK_PORT, "size": BULK_BYTES}
    rule = NetworkPolicy("strict", (EgressRule(outside.near, BULK_PORT),))
    held = await online.load(rule, net_mbps=MBPS)
    assert min(await held.do("bulk", **bulk)) >= LEAST_S
    assert not await held.do("reach", host=outside.near, port=8080)
    process = Path(f"/proc/{_vm(held).machine.pid}/ns/net")
    assert process.readlink() != Path("/proc/self/ns/net").readlink(), "it is in a namespace of its own"
    await held.stop()
    await online.rest()

    other = NetworkPolicy("strict", (EgressRule(outside.near, 8080),))
    free, other_rule = await asyncio.gather(online.load(rule), online.load(other, net_mbps=MBPS))
    assert {_vm(free).source, _vm(other_rule).source} == {"template"}
    assert len(online.ports()) == 2
    seen = await free.do("about")
    assert (seen["interfaces"], seen["resolver"]) == (["eth0", "lo"], ["nameserver", "192.0.0.1"])
    again = [LEAST_S]
    for _ in range(5):  # a busy host may be slow once, the limit would be each time
        if min(again) >= LEAST_S / 2:
            again = await free.do("bulk", **bulk)
    assert min(again) < LEAST_S / 2, "nothing is left of the limit"
    assert not await free.do("reach", host=outside.near, port=8080)
    assert await other_rule.do("reach", host=outside.near, port=8080)
    assert not await other_rule.do("reach", host=outside.near, port=BULK_PORT)
    for function in (free, other_rule):
        await function.stop()
    assert online.left() == []


async def test_a_host_that_cannot_filter_or_limit_says_so(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    """BE6: refused by name."""
    backend = online.backend
    monkeypatch.setattr(backend._network, "shapes", False)
    assert (await backend.capabilities()).enforces["net_io"] == "no"
    with pytest.raises(NovaError, match=r"limits\.net_mbps"):
        await online.load(NetworkPolicy(), net_mbps=1)
    monkeypatch.setattr(backend, "_online", False)
    assert (await backend.capabilities()).enforces["network_rules"] == "no"
    with pytest.raises(NovaError, match="network_policy"):
        await online.load(NetworkPolicy())
    assert online.left() == []


async def test_the_bridge_of_a_killed_daemon_goes_with_its_next_one(tmp_path: Path) -> None:
    """BE2: also when no machine of that one needs it."""
    node = f"k-{secrets.token_hex(3)}"
    backend = ground.backend(tmp_path, node)
    options = backend._options
    killed = VmNetwork(Leases(options.leases, f"{node}-qemu"), options.bridge, options.subnet)
    await killed.start()
    assert options.bridge in [name for _, name in socket.if_nameindex()]
    await backend.start()
    await backend.close()
    assert options.bridge not in [name for _, name in socket.if_nameindex()]
    assert ground.files(tmp_path) == []
    await killed.close()


def _vm(function: Function) -> QemuVm:
    assert isinstance(function.instance, QemuVm)
    return function.instance
