"""What a machine is told at its start: its size, its drives, and on the kernel's command line what its first process needs.

Nothing secret is in it: of the token only the digest, of the function nothing.
"""

from typing import Final

from nova.domain.function import Limits
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.firecracker.api import (
    BootSource,
    Drive,
    MachineConfig,
    MachineSetup,
    NetworkInterface,
    RateLimiter,
    TokenBucket,
    Vsock,
)
from nova.execution.backends.firecracker.jail import VSOCK
from nova.execution.backends.vm import shape
from nova.execution.backends.vm.bridge import TAP
from nova.execution.backends.vm.drives import CODE, layer_file
from nova.execution.backends.vm.network import GUEST_MAC, KERNEL_ADDRESS

KERNEL: Final = "vmlinux"
INITRD: Final = "initrd"
ROOTFS: Final = "rootfs.ext4"
CID: Final = 3
"""The same in every machine: each has its vsock as a socket of its own, so there is nothing to collide with."""
VMM_MB: Final = 128
"""What the process may have beside the guest's memory: its own, and of its drives what the host keeps in memory."""
_BYTES_PER_MBIT: Final = 125_000
_BYTES_PER_MB: Final = 1_000_000


def setup(
    spec: InstanceSpec, token_sha256: str, port: int, *, initrd: bool, blank: bool, drives: RateLimiter | None
) -> MachineSetup:
    """Of a new machine, with the names that its files have in its jail. ``drives``: what holds each of them."""
    return MachineSetup(
        boot=BootSource(KERNEL, boot_args(spec, token_sha256, port, blank=blank), INITRD if initrd else None),
        machine=MachineConfig(shape.vcpus(spec.limits), shape.memory_mb(spec.limits)),
        drives=_drives(spec, drives),
        vsock=Vsock(CID, VSOCK),
        network=None if spec.network.offline else interface(spec.limits),
    )


def boot_args(spec: InstanceSpec, token_sha256: str, port: int, *, blank: bool) -> str:
    words = [
        "console=ttyS0",
        "reboot=k",
        "panic=1",
        "pci=off",
        "quiet",
        "sysctl.user.max_user_namespaces=0",
        "init=/opt/nova/init",
        *shape.words(spec, token_sha256, f"vsock:{port}", blank=blank),
    ]
    if not spec.network.offline:
        words.append(f"ip={KERNEL_ADDRESS}")
    return " ".join(words)


def _drives(spec: InstanceSpec, limiter: RateLimiter | None) -> tuple[Drive, ...]:
    """The root is ``vda``, then come those of :func:`own_drives`."""
    own = [("code", CODE), *((f"layer{number}", layer_file(number)) for number, _ in enumerate(spec.layers))]
    root = Drive("rootfs", ROOTFS, is_root_device=True, is_read_only=True, rate_limiter=limiter)
    return (
        root,
        *(Drive(name, file, is_root_device=False, is_read_only=True, rate_limiter=limiter) for name, file in own),
    )


def drive_limiter(mbps: int, ops: int) -> RateLimiter | None:
    """MB and operations a second, each way; 0: not limited."""
    if not mbps and not ops:
        return None
    return RateLimiter(
        TokenBucket.per_second(mbps * _BYTES_PER_MB) if mbps else None, TokenBucket.per_second(ops) if ops else None
    )


def interface(limits: Limits) -> NetworkInterface:
    limiter = RateLimiter(TokenBucket.per_second(limits.net_mbps * _BYTES_PER_MBIT)) if limits.net_mbps else None
    return NetworkInterface("eth0", GUEST_MAC, TAP, limiter, limiter)
