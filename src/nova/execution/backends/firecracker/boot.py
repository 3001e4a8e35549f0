"""What a machine is told at its start: its size, its drives, and on the kernel's command line what its first process needs.

Nothing secret is in it: of the token only the digest, of the function nothing.
"""

import math
import os
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
from nova.execution.backends.vm.bridge import TAP
from nova.execution.backends.vm.network import GUEST_MAC, KERNEL_ADDRESS

KERNEL: Final = "vmlinux"
INITRD: Final = "initrd"
ROOTFS: Final = "rootfs.ext4"
CODE: Final = "code.ext4"
LAYERS_MOST: Final = 6
CID: Final = 3
"""The same in every machine: each has its vsock as a socket of its own, so there is nothing to collide with."""
GUEST_MB: Final = 64
"""What a guest's kernel and agent take beside the function's memory."""
VMM_MB: Final = 128
"""What the process may have beside the guest's memory: its own, and of its drives what the host keeps in memory."""
VMM_THREADS: Final = 32
_VCPUS_MOST: Final = 32
_BYTES_PER_MBIT: Final = 125_000


def layer_file(number: int) -> str:
    return f"layer{number}.ext4"


def own_drives(spec: InstanceSpec) -> list[str]:
    """The files of drives that are one machine's."""
    return [CODE, *(layer_file(number) for number, _ in enumerate(spec.layers))]


def size(limits: Limits) -> MachineConfig:
    return MachineConfig(vcpus(limits), memory_mb(limits))


def memory_mb(limits: Limits) -> int:
    """Of the machine."""
    return limits.memory_mb + GUEST_MB


def vcpus(limits: Limits) -> int:
    return max(1, min(math.ceil(limits.cpu_ceiling), os.cpu_count() or 1, _VCPUS_MOST))


def setup(spec: InstanceSpec, token_sha256: str, port: int, *, initrd: bool) -> MachineSetup:
    """Of a new machine, with the names that its files have in its jail."""
    return MachineSetup(
        boot=BootSource(KERNEL, boot_args(spec, token_sha256, port), INITRD if initrd else None),
        machine=size(spec.limits),
        drives=_drives(spec),
        vsock=Vsock(CID, VSOCK),
        network=None if spec.network.offline else _interface(spec.limits),
    )


def boot_args(spec: InstanceSpec, token_sha256: str, port: int) -> str:
    words = [
        "console=ttyS0",
        "reboot=k",
        "panic=1",
        "pci=off",
        "quiet",
        "sysctl.user.max_user_namespaces=0",
        "init=/opt/nova/init",
        f"nova.token_sha256={token_sha256}",
        f"nova.instance_id={spec.instance_id}",
        f"nova.listen=vsock:{port}",
        f"nova.tmp_mb={spec.limits.tmp_mb}",
        f"nova.memory_mb={spec.limits.memory_mb}",
        f"nova.pids={spec.limits.pids}",
    ]
    if not spec.network.offline:
        words.append(f"ip={KERNEL_ADDRESS}")
    if mounts := ",".join(_mounts(spec)):
        words.append(f"nova.mounts={mounts}")
    return " ".join(words)


def _mounts(spec: InstanceSpec) -> list[str]:
    """Drives come in the order of :func:`_drives`: the root is ``vda``, the code ``vdb``."""
    return [f"vd{chr(ord('c') + number)}:{layer.target}:ro" for number, layer in enumerate(spec.layers)]


def _drives(spec: InstanceSpec) -> tuple[Drive, ...]:
    drives = [
        Drive("rootfs", ROOTFS, is_root_device=True, is_read_only=True),
        Drive("code", CODE, is_root_device=False, is_read_only=True),
    ]
    for number, _ in enumerate(spec.layers):
        drives.append(Drive(f"layer{number}", layer_file(number), is_root_device=False, is_read_only=True))
    return tuple(drives)


def _interface(limits: Limits) -> NetworkInterface:
    limiter = RateLimiter(TokenBucket.per_second(limits.net_mbps * _BYTES_PER_MBIT)) if limits.net_mbps else None
    return NetworkInterface("eth0", GUEST_MAC, TAP, limiter, limiter)
