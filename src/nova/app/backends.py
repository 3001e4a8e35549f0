"""The backends that this host may have beside the sandbox, one entry each."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nova.config import Settings
from nova.execution.backends.base import Backend
from nova.execution.backends.probing import Candidate, Proofs
from nova.execution.images import Images
from nova.execution.images.kernel import Kernels
from nova.runtimes.registry import Runtimes

if TYPE_CHECKING:
    from nova.execution.backends.firecracker.options import FirecrackerOptions
    from nova.execution.backends.qemu.options import QemuOptions

WASM = "wasm"
"""The runtime, and the one backend that it runs on."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What backends are made of. ``home`` belongs to this process alone, ``node`` is a name that no other process of the host
    has, and ``place`` the number of this process on its data directory."""

    settings: Settings
    runtimes: Runtimes
    images: Images
    sandbox: Backend
    home: Path
    node: str
    place: int

    @property
    def packaged(self) -> tuple[str, ...]:
        """The runtimes that may have an image."""
        return tuple(runtime.id for runtime in self.runtimes.list() if runtime.id != WASM)


@dataclass(frozen=True, slots=True)
class Entry:
    """``missing`` says at once what the host lacks, empty when the backend is worth a try; ``make`` imports what it needs.
    ``depends`` are the files without which, or with others, what has booted before may not boot again."""

    make: Callable[[Ground], Backend]
    missing: Callable[[Ground], str] = lambda _ground: ""
    depends: Callable[[Ground], Iterable[Path]] = lambda _ground: ()


def _docker(ground: Ground) -> Backend:
    from nova.execution.backends.docker.backend import DockerBackend, DockerOptions
    from nova.execution.backends.docker.published import Published

    settings, docker = ground.settings, ground.settings.docker
    published = Published(docker.network, docker.port_range_min, docker.port_range_max)
    return DockerBackend(
        DockerOptions(
            run_dir=ground.home / "docker",
            node=ground.node,
            runtimes=ground.packaged,
            host=docker.host,
            image_prefix=docker.image_prefix,
            templates=docker.templates,
            published=published if docker.channel == "tcp" else None,
            subnet=settings.sandbox.subnet,
            private_networks=settings.network_policy.private_egress,
            blocked=tuple(settings.network_policy.blocked),
        ),
        ground.images,
    )


def _no_docker(ground: Ground) -> str:
    host = ground.settings.docker.host
    if not host:
        return "docker.host is empty"
    path = host.removeprefix("unix://")
    return "" if os.path.exists(path) else f"no Docker engine listens at {host}"


def _firecracker(ground: Ground) -> Backend:
    from nova.execution.backends.firecracker.backend import FirecrackerBackend

    return FirecrackerBackend(_firecracker_options(ground), ground.images)


def _firecracker_options(ground: Ground) -> "FirecrackerOptions":
    from nova.execution.backends.firecracker.jail import Programs
    from nova.execution.backends.firecracker.options import FirecrackerOptions

    settings = ground.settings
    given = settings.firecracker
    return FirecrackerOptions(
        node=ground.node,
        programs=Programs(given.firecracker_bin, given.jailer_bin),
        kernel=given.kernel_path,
        jail_dir=given.socket_dir,
        snapshot_dir=given.snapshot_dir,
        log_dir=given.log_dir,
        runtimes=ground.packaged,
        bridge=given.bridge_name,
        subnet=given.subnet,
        boot_timeout_s=given.boot_timeout,
        code_drive_mb=given.code_drive_size_mb,
        vsock_port=given.vsock_port,
        templates=given.templates,
        drive_mbps=given.drive_mbps,
        drive_ops=given.drive_ops,
        uid=given.uid,
        gid=given.gid,
        cgroup_root=settings.sandbox.cgroup_root,
        private_networks=settings.network_policy.private_egress,
        blocked=tuple(settings.network_policy.blocked),
    )


def _no_firecracker(ground: Ground) -> str:
    from nova.execution.backends.firecracker.options import missing

    return missing(_firecracker_options(ground))


def _firecracker_files(ground: Ground) -> Iterable[Path]:
    given = ground.settings.firecracker
    return (given.firecracker_bin, given.jailer_bin, given.kernel_path, given.kernel_path.with_name("initrd"))


def _qemu(ground: Ground) -> Backend:
    from nova.execution.backends.qemu.backend import QemuBackend

    return QemuBackend(_qemu_options(ground), ground.images)


def _qemu_options(ground: Ground) -> "QemuOptions":
    from nova.execution.backends.qemu.options import QemuOptions

    settings = ground.settings
    given = settings.qemu
    return QemuOptions(
        node=ground.node,
        home=ground.home / "qemu",
        kernels=Kernels(settings.images_dir / "kernel"),
        snapshot_dir=ground.home / "qemu-snapshots",
        binary=given.bin,
        accel=given.accel,
        runtimes=ground.packaged,
        boot_timeout_s=given.boot_timeout,
        bridge=given.bridge_name,
        subnet=given.subnet,
        templates=given.templates,
        uid=given.uid,
        gid=given.gid,
        cgroup_root=settings.sandbox.cgroup_root,
        private_networks=settings.network_policy.private_egress,
        blocked=tuple(settings.network_policy.blocked),
    )


def _no_qemu(ground: Ground) -> str:
    from nova.execution.backends.qemu.options import missing

    return missing(_qemu_options(ground))


def _qemu_files(ground: Ground) -> Iterable[Path]:
    from nova.execution.backends.qemu.options import program

    options = _qemu_options(ground)
    kernel = options.kernels.find()
    return (Path(program(options)), *((kernel.vmlinux, kernel.initrd) if kernel else ()))


def _wasm(ground: Ground) -> Backend:
    from nova.execution.backends.wasm.backend import WasmBackend, WasmOptions

    return WasmBackend(WasmOptions(), ground.sandbox)


def _no_wasm(ground: Ground) -> str:
    return ground.runtimes.get(WASM).reason


ENTRIES = {
    "firecracker": Entry(_firecracker, _no_firecracker, _firecracker_files),
    "qemu": Entry(_qemu, _no_qemu, _qemu_files),
    "docker": Entry(_docker, _no_docker),
    WASM: Entry(_wasm, _no_wasm),
}
"""``api.functions.Backend`` names these too, and ``config.ExecutionSettings.backend`` all but the one for one runtime."""


def candidates(ground: Ground) -> list[Candidate]:
    return [_candidate(name, entry, ground) for name, entry in ENTRIES.items()]


def _candidate(name: str, entry: Entry, ground: Ground) -> Candidate:
    return Candidate(name, lambda: entry.make(ground), lambda: entry.missing(ground))


def proofs(ground: Ground) -> Proofs:
    """Kept beside what else this process keeps."""
    return Proofs(ground.home / "backends.json", {name: _depends(entry, ground) for name, entry in ENTRIES.items()})


def _depends(entry: Entry, ground: Ground) -> Callable[[], Iterable[Path]]:
    return lambda: (*entry.depends(ground), *(image.path for image in ground.images.list()))
