"""The kernel of machines: Debian's cloud kernel, as QEMU and as Firecracker want it, and the few modules it needs to boot."""

import contextlib
import fcntl
import json
import lzma
import platform
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nova.errors import NovaError
from nova.execution.images import packing, tree
from nova.execution.images.commands import as_root, run
from nova.execution.images.initramfs import Initramfs
from nova.execution.images.recipe import host_suite

_PACKAGES: Final = ("linux-image-cloud-amd64", "tiny-initramfs", "busybox-static", "lz4", "zstd", "xz-utils")
"""``tiny-initramfs`` only stands in for larger packages that the kernel's asks for; the others unpack and begin."""
_MODULES: Final = (
    *(
        "crc32c-intel",
        "virtio_ring",
        "virtio",
        "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev",
        "virtio_pci",
        "virtio_mmio",
    ),
    *("virtio_blk", "failover", "net_failover", "virtio_net", "virtio_console", "virtio-rng"),
    *("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"),
)
"""In the order in which they load. One that is not there is built into the kernel."""
_REVISION: Final = 6
VMLINUX: Final = "vmlinux"
_ABOUT: Final = "kernel.json"
_SETUP_SECTORS: Final = 0x1F1
_MAGIC: Final = 0x202
_PAYLOAD: Final = 0x248
_SECTOR: Final = 512
_SIZE_BYTES: Final = 4
"""After the payload stands how long it will be; unpackers take it for rubbish."""
_UNPACKERS: Final = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"\x1f\x8b": "gzip"}
_ELF: Final = b"\x7fELF"
_TOOL_S: Final = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """``vmlinuz`` is for QEMU, ``vmlinux`` for Firecracker; both boot with ``initrd``, which mounts the drive that the
    command line names as ``root`` and goes on to its ``init``."""

    version: str
    vmlinuz: Path
    vmlinux: Path
    initrd: Path


class Kernels:
    """The kernel below ``folder``. Any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self) -> Kernel | None:
        try:
            about = json.loads((self.folder / _ABOUT).read_text())
        except FileNotFoundError:
            return None
        if about["revision"] != _REVISION:
            return None
        return self._at(about["version"])

    def require(self) -> Kernel:
        """Raises NovaError ``dependency_unavailable`` with the command that gets one."""
        found = self.find()
        if found is None:
            text = f"there is no kernel for machines at {self.folder}; get one with: nova setup kernel"
            raise NovaError("dependency_unavailable", text)
        return found

    def build(self, say: Say) -> Kernel:
        """Get it from Debian unless it is there. Blocking. Raises NovaError ``unsupported`` on other processors than x86-64,
        ``dependency_unavailable`` when a program is missing or Debian cannot be reached."""
        if platform.machine() != "x86_64":
            raise NovaError("unsupported", f"there is no recipe of a kernel for {platform.machine()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.find()
            if found is None:
                found = self._make(say)
                say(f"kernel {found.version}: {self.folder}")
        return found

    def _make(self, say: Say) -> Kernel:
        with _workshop(self.folder) as work:
            root, made = work / "root", work / "made"
            made.mkdir()
            say("unpacking Debian's cloud kernel")
            tree.unpack_packages(root, _PACKAGES, host_suite())
            packed = next(iter(sorted((root / "boot").glob("vmlinuz-*"))))
            version = packed.name.removeprefix("vmlinuz-")
            say("extracting it, and packing what it boots with")
            shutil.copyfile(packed, made / "vmlinuz")
            (made / VMLINUX).write_bytes(_extract(packed.read_bytes(), root))
            (made / "initrd").write_bytes(_initrd(root, version))
            (made / _ABOUT).write_text(json.dumps({"version": version, "revision": _REVISION}))
            for path in sorted(made.iterdir(), key=lambda path: path.name == _ABOUT):
                path.chmod(0o644)
                path.rename(self.folder / path.name)
        return self._at(version)

    def _at(self, version: str) -> Kernel:
        return Kernel(version, self.folder / "vmlinuz", self.folder / VMLINUX, self.folder / "initrd")


def _extract(image: bytes, root: Path) -> bytes:
    """The ELF file within a bzImage. ``root`` has the programs that unpack it. Raises NovaError when it is none."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise NovaError("unsupported", "the kernel is not a bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    begin = (image[_SETUP_SECTORS] + 1) * _SECTOR + offset
    payload = image[begin : begin + length]
    program = next((name for magic, name in _UNPACKERS.items() if payload.startswith(magic)), None)
    if program is None:
        raise NovaError("unsupported", f"the kernel is packed in an unknown way: {payload[:4].hex()}")
    with (root / "payload").open("wb") as file:
        file.write(payload[:-_SIZE_BYTES])
    unpack = f"{program} -dc < /payload > /vmlinux"
    run(*as_root("chroot", str(root), "/bin/busybox", "sh", "-c", unpack), timeout_s=_TOOL_S)
    unpacked = (root / "vmlinux").read_bytes()
    if not unpacked.startswith(_ELF):
        raise NovaError("unsupported", "the kernel does not unpack to an ELF file")
    return unpacked


def _initrd(root: Path, version: str) -> bytes:
    files = {path.name.partition(".ko")[0]: path for path in (root / "usr/lib/modules" / version).rglob("*.ko*")}
    modules = [(name, _module(files[name])) for name in _MODULES if name in files]
    return Initramfs((root / "usr/bin/busybox").read_bytes(), modules).packed()


def _module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


@contextlib.contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    try:
        yield work
    finally:
        packing.remove(work)
