"""What a kept machine was made with. Where any of it differs, it is not gone on from."""

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.firecracker import boot
from nova.execution.images import ImageFile

_CPU_WORDS: Final = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")


def fingerprint(firecracker: Path, kernel: Path, image: ImageFile, spec: InstanceSpec) -> str:
    """A digest of Firecracker, kernel, processor, the image (which stands for agent and runtime), and the machine's own make.
    The function's code, handler and environment are in the snapshot's key. Raises OSError."""
    make = {
        "firecracker": _digest(firecracker),
        "kernel": _digest(kernel),
        "cpu": processor(),
        "image": [image.runtime, image.version, image.digest],
        "machine": asdict(boot.size(spec.limits)),
        "limits": asdict(spec.limits),
        "offline": spec.network.offline,
        "layers": [[str(layer.path), layer.target] for layer in spec.layers],
        "code": str(spec.code),
    }
    return hashlib.sha256(json.dumps(make, sort_keys=True).encode()).hexdigest()


@functools.cache
def processor() -> str:
    """What a saved processor's state depends on."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    pairs = (line.partition(":")[::2] for line in lines)
    return "\n".join(f"{name.strip()}:{value.strip()}" for name, value in pairs if name.strip() in _CPU_WORDS)


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _digest_of(path: Path, _inode: int, _size: int, _changed: int) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
