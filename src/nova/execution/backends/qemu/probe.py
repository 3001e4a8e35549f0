"""Whether guests really run with KVM on this host: tried once with the guest kernel, and remembered.

A device node is no proof: on hosts that are machines themselves it may be there and every guest die of it.
"""

import asyncio
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Final

import structlog

from nova.execution.backends.qemu import boot
from nova.execution.backends.qemu.options import Accelerator, QemuOptions, has_kvm, program
from nova.execution.backends.qemu.wiring import Wiring
from nova.execution.images.kernel import Kernel

log = structlog.get_logger(__name__)

PROBE_S: Final = 10.0
_ALIVE: Final = b"nova-guest-runs-programs"
_SAY_SO: Final = f"rdinit=/bin/busybox -- echo {_ALIVE.decode()}"
"""The kernel hands what follows the dashes to its first program; when that ends, the machine does."""
_MEMORY_MB: Final = 128
_TAIL: Final = 200


async def best_accelerator(options: QemuOptions) -> Accelerator:
    """What ``options.accel`` means here; ``auto`` may take :data:`PROBE_S` seconds to find out, once for each emulator,
    guest kernel and host kernel."""
    if options.accel != "auto":
        return options.accel
    if not has_kvm():
        return "tcg"
    remembered = options.home / "accelerator.json"
    key = _key(program(options), options.kernels.require())
    if (known := _remembered(remembered, key)) is not None:
        return known
    found: Accelerator = "kvm" if await runs(options, "kvm") else "tcg"
    remembered.write_text(json.dumps({"key": key, "accelerator": found}))
    return found


async def runs(options: QemuOptions, accel: Accelerator, limit_s: float = PROBE_S) -> bool:
    """Boot the guest kernel without drives and wait until a program of its initial file system speaks."""
    words = " ".join([*boot.kernel_words(accel), _SAY_SO])
    with Wiring(options.kernels.require(), []) as wiring:
        argv = [*boot.as_user(None, 0), *boot.bare(program(options), accel, words, _MEMORY_MB, wiring)]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=wiring.given,
            start_new_session=True,
        )
    said = b""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(limit_s):
            while _ALIVE not in said and (piece := await process.stdout.read(4096)):
                said += piece
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    if _ALIVE not in said:
        log.info(
            "guests do not run with this accelerator", accelerator=accel, said=said[-_TAIL:].decode(errors="replace")
        )
    return _ALIVE in said


def _remembered(file: Path, key: str) -> Accelerator | None:
    try:
        kept = json.loads(file.read_text())
        if kept["key"] == key and kept["accelerator"] in ("kvm", "tcg"):
            return "kvm" if kept["accelerator"] == "kvm" else "tcg"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _key(binary: str, kernel: Kernel) -> str:
    words = [platform.release(), platform.machine()]
    for path in (binary, kernel.vmlinux, kernel.initrd):
        found = os.stat(path)
        words.append(f"{path} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
