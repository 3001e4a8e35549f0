"""``limits.net_mbps``, measured between an instance and a host that the test makes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.execution.backends.sandbox.netlink import _BURST_LEAST
from tests.execution.backends.sandbox.harness import Function, load
from tests.execution.backends.sandbox.world import BULK_BYTES, BULK_PORT, World, world

pytestmark = [pytest.mark.anyio, pytest.mark.root]

GUEST = """
    import concurrent.futures, socket, time

    def give(host, port, size):
        with socket.create_connection((host, port), 10) as sock:
            sock.sendall(b"u" + bytes(size))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(2) == b"ok"

    def take(host, port, size):
        with socket.create_connection((host, port), 10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"d")
            assert len(file.read()) == size

    def flood(host, port, size):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 5353))
            sock.setblocking(False)
            end, got = time.monotonic() + 0.5, 0
            while time.monotonic() < end:
                try:
                    sock.send(bytes(1400))
                except OSError:
                    pass
                try:
                    got += len(sock.recv(2048))
                except OSError:
                    pass
            return got

    def timed(work, *rest):
        start = time.monotonic()
        work(*rest)
        return time.monotonic() - start

    def handler(event):
        what, *rest = event
        if what == "flood":
            return flood(*rest)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return [task.result() for task in [pool.submit(timed, work, *rest) for work in (give, take)]]
"""

MBPS = 10
BYTES_PER_S = MBPS * 125_000


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with world() as place:
        yield place


async def test_bandwidth(sandbox: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """Both ways are held to the limit, each for itself, for every protocol; the next user of the way out has its own."""
    limits = Limits(memory_mb=256, vcpus=1, net_mbps=MBPS)
    function = await load(sandbox, tmp_path, GUEST, limits=limits, network=NetworkPolicy())
    slot = function.instance.slot
    assert slot is not None
    least = (BULK_BYTES - _BURST_LEAST) / BYTES_PER_S
    out, into = await function.value(("bulk", outside.near, BULK_PORT, BULK_BYTES))
    assert out >= least * 0.95
    assert into >= least * 0.95
    echoed = await function.value(("flood", outside.near, BULK_PORT, 0))
    assert 0 < echoed < _BURST_LEAST + BYTES_PER_S
    await function.stop()
    assert not slot.shaped
    held: list[Function] = []
    while not held or (held[-1].instance.slot is not slot and len(held) < 20):
        held.append(await load(sandbox, tmp_path, GUEST, network=NetworkPolicy()))
    assert held[-1].instance.slot is slot
    again = [least]
    for _ in range(5):  # a busy host may be slow once, the limit would be each time
        if max(again) >= least / 2:
            again = await held[-1].value(("bulk", outside.near, BULK_PORT, BULK_BYTES))
    assert max(again) < least / 2, "nothing is left of the limit"
    for other in held:
        await other.stop()


async def test_a_host_that_cannot_limit_bandwidth_says_so(sandbox: SandboxBackend) -> None:
    """BE6: refused by name."""
    assert sandbox._network is not None
    sandbox._network._shapes = False
    try:
        assert (await sandbox.capabilities()).enforces["net_io"] == "no"
        with pytest.raises(NovaError, match=r"limits\.net_mbps") as refusal:
            await sandbox.create(InstanceSpec("i", "python", "3.11", None, Limits(net_mbps=1), NetworkPolicy()))
        assert refusal.value.code == "unsupported"
    finally:
        sandbox._network._shapes = True
