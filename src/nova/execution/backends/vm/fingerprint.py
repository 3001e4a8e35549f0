"""What a kept machine was made with. Where any of it differs, it is not gone on from."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.vm.shape import Shape
from nova.execution.images import ImageFile

_CPU_WORDS: Final = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")


def fingerprint(files: Mapping[str, Path], options: Mapping[str, object], image: ImageFile, shape: Shape) -> str:
    """A digest of ``files`` (programs, kernels), ``options`` (what else a machine is started with), processor, image (which
    stands for agent and runtime), and the machine's shape. Raises OSError."""
    found = image.path.stat()
    return _digest_of_all(
        {
            "files": {name: _digest(path) for name, path in files.items()},
            "options": dict(options),
            "cpu": processor(),
            "image": [image.runtime, image.version, image.digest, found.st_size, found.st_mtime_ns],
            "shape": asdict(shape),
        }
    )


def function_fingerprint(machine: str, spec: InstanceSpec) -> str:
    """``machine`` with what is mounted and held for one function. Its handler and environment are in the snapshot's key."""
    return _digest_of_all(
        {
            "machine": machine,
            "limits": asdict(spec.limits),
            "layers": [[str(layer.path), layer.target] for layer in spec.layers],
            "code": str(spec.code),
        }
    )


@functools.cache
def processor() -> str:
    """What a saved processor's state depends on."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    pairs = (line.partition(":")[::2] for line in lines)
    return "\n".join(f"{name.strip()}:{value.strip()}" for name, value in pairs if name.strip() in _CPU_WORDS)


def _digest_of_all(make: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(make, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _digest_of(path: Path, _inode: int, _size: int, _changed: int) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
