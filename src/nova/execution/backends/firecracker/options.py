"""What the Firecracker backend is told, and what of it this host does not have."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nova.execution.backends.firecracker.jail import Programs, distrust
from nova.execution.backends.sandbox.nftables import find_nft
from nova.execution.backends.vm import codedrive
from nova.execution.backends.vm.leases import DEFAULT_FOLDER

KVM: Final = Path("/dev/kvm")
MACHINES_MOST: Final = 1000
"""Host users that machines of one host may have."""


@dataclass(frozen=True, slots=True)
class FirecrackerOptions:
    """``node``: a name that no other daemon on the host has. ``uid``: the first of 1000 host users that belong to machines;
    ``gid``: the group of all of them.

    ``jail_dir`` should have a short name: paths of sockets have at most 107 bytes.
    """

    node: str
    programs: Programs
    kernel: Path
    jail_dir: Path
    snapshot_dir: Path
    log_dir: Path
    runtimes: tuple[str, ...] = ()
    """those to look for images of"""
    bridge: str = "novabr0"
    subnet: str = "172.30.0.0/24"
    boot_timeout_s: float = 10.0
    code_drive_mb: int = 16
    vsock_port: int = 9999
    uid: int = 400_000
    gid: int = 400_000
    cgroup_root: str = ""
    private_networks: bool = True
    blocked: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    leases: Path = DEFAULT_FOLDER
    snapshots_mb: int = 10_240
    """what snapshots may take on disk; those not used for longest go first"""
    templates: bool = True
    """keep machines that were booted for nobody, so that cold starts need not boot"""
    drive_mbps: int = 0
    """what a machine may read from each of its drives, in MB a second; 0: not limited"""
    drive_ops: int = 0
    """the same in operations a second"""

    @property
    def initrd(self) -> Path | None:
        """The file ``initrd`` beside the kernel, for kernels that have the drivers of drives as modules."""
        beside = self.kernel.with_name("initrd")
        return beside if beside.is_file() else None


def missing(options: FirecrackerOptions) -> str:
    """What this host lacks, as a reason; empty when a machine can be tried."""
    if os.geteuid() != 0:
        return "the jailer needs root"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"{KVM} is not here or not usable: no hardware virtualisation"
    for program in (options.programs.firecracker, options.programs.jailer):
        if not os.access(program, os.X_OK):
            return f"{program} is not installed; nova setup firecracker gets it"
    if not options.kernel.is_file():
        return f"there is no kernel for guests at {options.kernel}; nova setup firecracker gets one"
    if reason := distrust(options.jail_dir):
        return reason
    if absent := codedrive.missing_tools():
        return f"{absent}: not installed (e2fsprogs)"
    if find_nft() is None and shutil.which("nft") is None:
        return "nft is not installed: machines' networks cannot be filtered"
    return ""


def leases_node(node: str) -> str:
    """By what the leases of this backend are known: another backend of the same node gives back only its own."""
    return f"{node}-fc"
