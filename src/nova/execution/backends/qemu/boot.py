"""What a machine is told at its start: its devices on QEMU's command line, and on the kernel's what its first process needs.

Nothing secret is in either: of the token only the digest, of the function nothing. Files are given as descriptors that are
open already, so QEMU's user needs no way to them.
"""

import os
from typing import Final

from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.qemu.options import Accelerator
from nova.execution.backends.qemu.wiring import Wiring
from nova.execution.backends.vm import shape
from nova.execution.backends.vm.network import GUEST_MAC, KERNEL_ADDRESS

PORT: Final = "nova.agent"
"""The name of the serial port that leads to the host."""
VMM_MB: Final = 192
"""What the process may have beside the guest's memory: its own, and what TCG makes of the guest's code."""
_IF_NEEDED: Final = '[ "$PPID" = "$1" ] || exit 125; shift; exec "$@"'
"""The daemon may have died before it was asked for the signal of its death."""
_TRANSLATED_MB: Final = 64
MACHINE: Final = "q35,sata=off,smbus=off,usb=off,vmport=off,smm=off,hpet=on"
_SECCOMP: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def as_user(uid: int | None, gid: int, namespace: str = "") -> list[str]:
    """What comes before QEMU: it dies with the daemon's thread that made it, is nobody else's user and can become none.
    ``namespace``: the path of the network namespace that it is in, if not this process's."""
    argv = ["nsenter", f"--net={namespace}", "--"] if namespace else []
    argv += ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
    if uid is not None:
        user = ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
        argv += [*user, "--inh-caps=-all", "--bounding-set=-all"]
    return [*argv, "--", "/bin/sh", "-c", _IF_NEEDED, "qemu", str(os.getpid())]


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
    if wiring.tap_fd is not None:
        argv += ["-netdev", f"tap,id=network,fd={wiring.tap_fd},vhost=off"]
        argv += ["-device", f"virtio-net-pci,netdev=network,mac={GUEST_MAC},romfile="]
    return argv if wiring.state_fd is None else [*argv, "-incoming", f"fd:{wiring.state_fd}"]


def bare(binary: str, accel: Accelerator, command_line: str, memory_mb: int, wiring: Wiring) -> list[str]:
    """A machine that has nothing but a serial console, which is QEMU's output."""
    argv = [binary, "-machine", MACHINE, *_processor(accel), "-m", f"{memory_mb}M"]
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


def command_line(spec: InstanceSpec, token_sha256: str, accel: Accelerator, *, blank: bool) -> str:
    """For :mod:`nova.agent.init`."""
    listen = f"serial:/dev/virtio-ports/{PORT}"
    words = [*kernel_words(accel), *shape.words(spec, token_sha256, listen, blank=blank)]
    return " ".join(words if spec.network.offline else [*words, f"ip={KERNEL_ADDRESS}"])
