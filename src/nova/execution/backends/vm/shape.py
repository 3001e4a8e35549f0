"""What a machine is made as, whatever runs it: its size, its drives, and what its first process is told.

Nothing of this is secret: of the token only the digest is in it, of the function nothing.
"""

import math
import os
from dataclasses import dataclass
from typing import Final, Self

from nova.agent.messages import PlaceHead
from nova.domain.function import Limits
from nova.execution.backends.base import InstanceSpec

LAYERS_MOST: Final = 6
GUEST_MB: Final = 64
"""What a guest's kernel and agent take beside the function's memory."""
VMM_THREADS: Final = 32
_VCPUS_MOST: Final = 32


def memory_mb(limits: Limits) -> int:
    """Of the machine."""
    return limits.memory_mb + GUEST_MB


def vcpus(limits: Limits) -> int:
    return max(1, min(math.ceil(limits.cpu_ceiling), os.cpu_count() or 1, _VCPUS_MOST))


def threads(limits: Limits) -> int:
    """Of the process, on the host."""
    return VMM_THREADS + vcpus(limits)


@dataclass(frozen=True, slots=True)
class Shape:
    """What all machines have in common that may come from one template. The rest is told to each when it goes on."""

    runtime: str
    memory_mb: int
    vcpus: int
    online: bool
    layers: int

    @classmethod
    def of(cls, spec: InstanceSpec) -> Self:
        limits = spec.limits
        return cls(spec.runtime, memory_mb(limits), vcpus(limits), not spec.network.offline, len(spec.layers))


def mounts(spec: InstanceSpec) -> str:
    """Drives come in the order of :func:`nova.execution.backends.vm.drives.own_drives`: the root is ``vda``, the code ``vdb``."""
    places = (f"vd{chr(ord('c') + number)}:{layer.target}:ro" for number, layer in enumerate(spec.layers))
    return ",".join(places)


def place(spec: InstanceSpec) -> PlaceHead:
    """For a machine that was booted for nobody."""
    limits = spec.limits
    return PlaceHead(mounts=mounts(spec), tmp_mb=limits.tmp_mb, memory_mb=limits.memory_mb, pids=limits.pids)


def words(spec: InstanceSpec, token_sha256: str, listen: str, *, blank: bool) -> list[str]:
    """For :mod:`nova.agent.init`, on the kernel's command line. ``blank``: the drives are mounted when it goes on."""
    found = [
        f"nova.token_sha256={token_sha256}",
        f"nova.instance_id={spec.instance_id}",
        f"nova.listen={listen}",
        f"nova.tmp_mb={spec.limits.tmp_mb}",
        f"nova.memory_mb={spec.limits.memory_mb}",
        f"nova.pids={spec.limits.pids}",
    ]
    if blank:
        return [*found, "nova.template=1"]
    return [*found, f"nova.mounts={mounts(spec)}"] if spec.layers else found
