"""What a machine is told at its start: its devices on QEMU's command line, and on the kernel's what its first process needs.

Nothing secret is in either: of the token only the digest, of the function nothing. Files are given as descriptors that are
open already, so QEMU's user needs no way to them.
"""

import math
import os
from typing import Final

from nova.domain.function import Limits
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.qemu.options import Accelerator
from nova.execution.backends.qemu.wiring import Wiring

PORT: Final = "nova.agent"
"""The name of the serial port that leads to the host."""
LAYERS_MOST: Final = 6
GUEST_MB: Final = 64
"""What a guest's kernel and agent take beside the function's memory."""
VMM_MB: Final = 192
"""What the process may have beside the guest's memory: its own, and what TCG makes of the guest's code."""
VMM_THREADS: Final = 32
_VCPUS_MOST: Final = 32
_TRANSLATED_MB: Final = 64
_MACHINE: Final = "q35,sata=off,smbus=off,usb=off,vmport=off,smm=off,hpet=on"
_SECCOMP: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def memory_mb(limits: Limits) -> int:
    """Of the machine."""
    return limits.memory_mb + GUEST_MB


def vcpus(limits: Limits) -> int:
    return max(1, min(math.ceil(limits.cpu_ceiling), os.cpu_count() or 1, _VCPUS_MOST))


def threads(limits: Limits) -> int:
    """Of the process, on the host."""
    return VMM_THREADS + vcpus(limits)


def as_user(uid: int | None, gid: int) -> list[str]:
    """What comes before QEMU: it dies with the daemon's thread that made it, is nobody else's user and can become none."""
    argv = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
    if uid is not None:
        user = ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
        argv += [*user, "--inh-caps=-all", "--bounding-set=-all"]
    return [*argv, "--"]


def machine(
    binary: str,
    name: str,
    accel: Accelerator,
    command_line: str,
    size: tuple[int, int],
    wiring: Wiring,
) -> list[str]:
    """QEMU's command. ``size``: MB of memory and virtual CPUs"""
    argv = [*bare(binary, accel, command_line, size[0], wiring), "-name", f"guest={name}", "-smp", str(size[1])]
    argv += ["-chardev", f"socket,id=monitor,fd={wiring.monitor_fd}", "-mon", "chardev=monitor,mode=control"]
    argv += ["-device", "virtio-serial-pci,max_ports=2", "-chardev", f"socket,id=agent,fd={wiring.agent_fd}"]
    argv += ["-device", f"virtserialport,chardev=agent,name={PORT}"]
    for number, descriptor in enumerate(wiring.drive_fds, 1):
        argv += ["-add-fd", f"fd={descriptor},set={number}"]
        drive = f"driver=file,filename=/dev/fdset/{number},node-name=drive{number},read-only=on,locking=off"
        argv += ["-blockdev", drive, "-device", f"virtio-blk-pci,drive=drive{number}"]
    return argv if wiring.state_fd is None else [*argv, "-incoming", f"fd:{wiring.state_fd}"]


def bare(binary: str, accel: Accelerator, command_line: str, memory_mb: int, wiring: Wiring) -> list[str]:
    """A machine that has nothing but a serial console, which is QEMU's output."""
    argv = [binary, "-machine", _MACHINE, *_processor(accel), "-m", f"{memory_mb}M"]
    argv += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-sandbox", _SECCOMP]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    argv += ["-kernel", f"/proc/self/fd/{wiring.image_fd}", "-initrd", f"/proc/self/fd/{wiring.initrd_fd}"]
    return [*argv, "-append", command_line]


def _processor(accel: Accelerator) -> list[str]:
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={_TRANSLATED_MB}", "-cpu", "max"]


def kernel_words(accel: Accelerator) -> list[str]:
    """For every guest. An emulated processor does not speculate, so what guards against that only costs;
    and its timer is late when the host is busy, which the kernel's own check of it takes for broken."""
    words = ["console=ttyS0", "quiet", "reboot=t", "panic=-1", "i8042.noaux", "i8042.nokbd"]
    words.append("sysctl.user.max_user_namespaces=0")
    return words if accel == "kvm" else [*words, "mitigations=off", "nokaslr", "no_timer_check"]


def command_line(spec: InstanceSpec, token_sha256: str, accel: Accelerator) -> str:
    """For :mod:`nova.agent.init`."""
    words = [
        *kernel_words(accel),
        f"nova.token_sha256={token_sha256}",
        f"nova.instance_id={spec.instance_id}",
        f"nova.listen=serial:/dev/virtio-ports/{PORT}",
        f"nova.tmp_mb={spec.limits.tmp_mb}",
        f"nova.memory_mb={spec.limits.memory_mb}",
        f"nova.pids={spec.limits.pids}",
    ]
    mounts = [f"vd{chr(ord('c') + number)}:{layer.target}:ro" for number, layer in enumerate(spec.layers)]
    if mounts:
        words.append(f"nova.mounts={','.join(mounts)}")
    return " ".join(words)
