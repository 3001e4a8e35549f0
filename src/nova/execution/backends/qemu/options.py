"""What the QEMU backend is told, and what of it this host does not have."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nova.errors import NovaError
from nova.execution.backends.vm import codedrive
from nova.execution.backends.vm.leases import DEFAULT_FOLDER
from nova.execution.images.kernel import Kernels

Accelerator = Literal["kvm", "tcg"]
KVM: Final = Path("/dev/kvm")
MACHINES_MOST: Final = 1000
"""Host users that machines of one host may have."""


@dataclass(frozen=True, slots=True)
class QemuOptions:
    """``node``: a name that no other daemon on the host has. ``home``: a folder of this daemon alone. ``accel`` ``auto``: KVM
    where a guest really runs with it, else TCG, which emulates every instruction. ``uid``: the first of 1000 host users that
    belong to machines when the daemon is root, ``gid`` the group of all of them.
    """

    node: str
    home: Path
    kernels: Kernels
    snapshot_dir: Path
    binary: str = "qemu-system-x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    runtimes: tuple[str, ...] = ()
    """those to look for images of"""
    boot_timeout_s: float = 60.0
    code_drive_mb: int = 16
    uid: int = 402_000
    gid: int = 402_000
    cgroup_root: str = ""
    leases: Path = DEFAULT_FOLDER
    snapshots_mb: int = 4096
    """what snapshots may take on disk; those not used for longest go first"""
    bridge: str = "novabr0"
    subnet: str = "172.30.0.0/24"
    private_networks: bool = True
    blocked: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    templates: bool = True
    """keep machines that were booted for nobody, so that cold starts need not boot"""


def program(options: QemuOptions) -> str:
    """The emulator's path; empty when it is not installed."""
    return shutil.which(options.binary) or ""


def missing(options: QemuOptions) -> str:
    """What this host lacks, as a reason; empty when a machine can be tried."""
    if not program(options):
        return f"{options.binary} is not installed (qemu-system-x86)"
    if shutil.which("setpriv") is None:
        return "setpriv is not installed (util-linux)"
    try:
        options.kernels.require()
    except NovaError as error:
        return error.detail
    if absent := codedrive.missing_tools():
        return f"{absent}: not installed (e2fsprogs)"
    if options.accel == "kvm" and not has_kvm():
        return f"{KVM} is not here or not usable, and qemu.accel asks for it"
    return ""


def has_kvm() -> bool:
    """The device is there and may be opened. Whether a guest runs with it is another matter."""
    return os.access(KVM, os.R_OK | os.W_OK)
