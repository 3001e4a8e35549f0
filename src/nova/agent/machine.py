"""What the first process does to its machine: mounts, limits, clock and random numbers, and its end. For root."""

import contextlib
import ctypes
import fcntl
import os
import re
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from nova.agent.entry import BadEntry, open_port
from nova.agent.messages import PlaceHead, ThawHead

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_EBUSY: Final = 16
_RB_AUTOBOOT: Final = 0x01234567
_RB_POWER_OFF: Final = 0x4321FEDC
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
_BLKFLSBUF: Final = 0x1261
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_NETLINK_KOBJECT_UEVENT: Final = 15
_GROUPS: Final = "/sys/fs/cgroup"
_DEVICE_S: Final = 10.0
"""How long a device may take to appear."""
_DYING_S: Final = 3.0
"""How long killed processes may take to be gone."""
_FILESYSTEM: Final = "ext4"
_TARGET: Final = re.compile(r"/(layers|mnt)/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_FOLDERS: Final = "mode=755,size=1m"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.reboot.argtypes = [ctypes.c_int]


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount on a folder, which is made if it can be. Raises OSError, naming the target."""
    with contextlib.suppress(OSError):
        os.makedirs(target, exist_ok=True)
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode())
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def mount_basics() -> None:
    """What Python and the rest here need."""
    for source, target, kind, flags in (
        ("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC),
        ("sysfs", "/sys", "sysfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC),
        ("devtmpfs", "/dev", "devtmpfs", _MS_NOSUID),
    ):
        try:
            mount(source, target, kind, flags)
        except OSError as error:
            if error.errno != _EBUSY:  # the kernel has done it
                raise


def mount_rest(tmp_mb: int, uid: int, reload_dir: str) -> None:
    """Places to write to, all in memory: ``/tmp`` for everybody, ``/dev/shm``, and ``reload_dir`` for ``uid``."""
    tame = _MS_NOSUID | _MS_NODEV
    mount("tmpfs", "/tmp", "tmpfs", tame, f"mode=1777,size={tmp_mb}m")
    mount("tmpfs", "/run", "tmpfs", tame, "mode=755,size=1m")
    mount("tmpfs", "/dev/shm", "tmpfs", tame, "mode=1777,size=16m")
    mount("tmpfs", reload_dir, "tmpfs", tame, f"mode=755,uid={uid},gid={uid}")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"/dev/{name}")
    socket.sethostname("nova")


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk that is to be seen at ``target``. ``optional``: it may be missing."""

    device: str
    target: str
    read_only: bool
    optional: bool = False

    def mount(self, uid: int) -> None:
        """Waits a while for the disk. The top of a writable one is given to ``uid``. Raises OSError."""
        path = f"/dev/{self.device}"
        if self.optional and not os.path.exists(path):
            return
        wait_until(lambda: os.path.exists(path), path)
        flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if self.read_only else 0)
        mount(path, self.target, _FILESYSTEM, flags)
        if not self.read_only:
            os.chown(self.target, uid, uid)


CODE: Final = Drive("vdb", "/code", read_only=True, optional=True)


def mount_drives(table: str, uid: int) -> None:
    """The code's, and those of ``table``, like ``vdc:/layers/0:ro,vdd:/mnt/data:rw``. Raises BadEntry, OSError."""
    CODE.mount(uid)
    further = drives(table)
    roots = {drive.target.split("/")[1] for drive in further}
    for root in roots:  # the root is read-only: folders for them are made in memory
        mount("tmpfs", f"/{root}", "tmpfs", _MS_NOSUID | _MS_NODEV, _FOLDERS)
    for drive in further:
        drive.mount(uid)
    for root in roots:
        mount("tmpfs", f"/{root}", "tmpfs", _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, _FOLDERS)


def drives(table: str) -> list[Drive]:
    """Targets lie below folders that hold nothing else: ``/layers``, ``/mnt``. Raises BadEntry."""
    found = []
    for row in filter(None, table.split(",")):
        match row.split(":"):
            case [device, target, ("ro" | "rw") as way] if device.isalnum() and _TARGET.fullmatch(target):
                found.append(Drive(device, target, read_only=way == "ro"))
            case _:
                raise BadEntry(f"mounts: {row!r} is not DEVICE:/layers/…:ro or rw, or below /mnt")
    return found


def wait_until(there: Callable[[], bool], what: str) -> None:
    """Ask again whenever the kernel says that a device came. Raises TimeoutError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT) as events:
        events.bind((0, 1))
        until = time.monotonic() + _DEVICE_S
        while not there():
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(110, "the device did not appear", what)
            select.select([events], [], [], left)
            with contextlib.suppress(OSError):
                events.recv(1 << 16, socket.MSG_DONTWAIT)


def wait_for_port(path: str) -> int:
    """The descriptor of a virtio serial port, as soon as it is there. It is opened once: what the host has sent is lost when
    a port is closed. Raises TimeoutError."""
    opened: list[int] = []

    def there() -> bool:
        with contextlib.suppress(FileNotFoundError):
            opened.append(open_port(path))
        return bool(opened)

    wait_until(there, path)
    return opened[0]


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("h", request, 16)[0]
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


def limit(memory_mb: int, pids: int) -> str:
    """A control group with these limits for the agent and its workers (0: none); empty where the kernel has none."""
    with contextlib.suppress(OSError):
        mount("cgroup2", _GROUPS, "cgroup2", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        _write(f"{_GROUPS}/cgroup.subtree_control", "+memory +pids")
        group = f"{_GROUPS}/instance"
        os.mkdir(group)
        _hold(group, memory_mb, pids)
        return group
    return ""


def _hold(group: str, memory_mb: int, pids: int) -> None:
    if pids:
        _write(f"{group}/pids.max", str(pids))
    if memory_mb:
        _write(f"{group}/memory.max", str(memory_mb << 20))


def join(group: str) -> None:
    _write(f"{group}/cgroup.procs", "0")


def awaken(thaw: ThawHead) -> None:
    """The machine goes on from a snapshot: the time is another, and random numbers must not come twice."""
    time.clock_settime_ns(time.CLOCK_REALTIME, thaw.now_ns)
    seed = bytes.fromhex(thaw.seed)
    with open("/dev/urandom", "wb", buffering=0) as device:
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def furnish(place: PlaceHead, group: str, uid: int) -> None:
    """A machine that was booted for nobody becomes somebody's: its drives, and what it may have. Raises BadEntry, OSError."""
    for name in os.listdir("/sys/block"):
        if name.startswith("vd") and name != "vda":
            _forget(f"/dev/{name}")
    mount_drives(place.mounts, uid)
    mount("tmpfs", "/tmp", "tmpfs", _MS_REMOUNT | _MS_NOSUID | _MS_NODEV, f"mode=1777,size={place.tmp_mb}m")
    if group:
        _hold(group, place.memory_mb, place.pids)


def _forget(device: str) -> None:
    """What was read of a disk while there was nothing on it."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _BLKFLSBUF)
    finally:
        os.close(descriptor)


def end(*, restart: bool) -> NoReturn:
    """Kill everything, write what is to be kept to its disks, and switch the machine off. Only the first process of a
    machine does that; anybody else just ends."""
    if os.getpid() == 1:
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        _bury_all()
        for target in _writable_disks():
            _libc.umount2(target.encode(), 0)
        os.sync()
        _libc.reboot(_RB_AUTOBOOT if restart else _RB_POWER_OFF)
    os._exit(1)


def _bury_all() -> None:
    """Until nobody has a file open any more; every process is a child of the first one in the end."""
    until = time.monotonic() + _DYING_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.002)


def _writable_disks() -> list[str]:
    with open("/proc/mounts") as table:
        rows = [line.split() for line in table]
    return [row[1] for row in rows if row[2] == _FILESYSTEM and "rw" in row[3].split(",")]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
