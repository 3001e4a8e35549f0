"""The system calls that the standard library does not have, with declared argument types and every result checked.

Guest-side code: standard library only.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from typing import NoReturn

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NEW_NAMESPACES = (
    CLONE_NEWTIME
    | CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET
)

CLONE_PARENT = 0x00008000
"""The child's parent is the caller's own parent."""

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECBIT_NO_SETUID_FIXUP = 0b100
"""A change of user does not take capabilities away."""
SECBITS_LOCKED_DOWN = 0b11101111
"""NOROOT and NO_SETUID_FIXUP locked on, KEEP_CAPS locked off, NO_CAP_AMBIENT_RAISE locked on."""

_SYSCALLS = {
    # name: (x86_64, aarch64)
    "clone": (56, 220),
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "close_range": (436, 436),
    "mount_setattr": (442, 442),
}
_COLUMN = {"x86_64": 0, "aarch64": 1}
MACHINE = platform.machine()
SUPPORTED_MACHINES = frozenset(_COLUMN)

with open("/proc/sys/kernel/cap_last_cap") as _file:
    LAST_CAPABILITY = int(_file.read())

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setfsuid.argtypes = _libc.setfsgid.argtypes = [ctypes.c_uint]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
# A fork must not happen with the interpreter's lock released, so it goes through a PyDLL.
_libpy = ctypes.PyDLL(None, use_errno=True)
_libpy.syscall.argtypes = [ctypes.c_long, *[ctypes.c_ulong] * 5]
_libpy.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall_number(name: str) -> int:
    """On this machine."""
    return _SYSCALLS[name][_COLUMN[MACHINE]]


def _syscall(name: str, *args: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(syscall_number(name)), *args), name)


def clone(flags: int, child: Callable[[], NoReturn]) -> int:
    """Fork into new namespaces (``flags`` are CLONE_NEW*) and run ``child`` there; returns the child's pid.

    The caller must be single-threaded. ``child`` must end the process; if it raises, the child exits with status 70.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    sigchld = 17
    pid: int = _libpy.syscall(syscall_number("clone"), flags | sigchld, 0, 0, 0, 0)
    if pid == 0:
        try:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            child()
        finally:
            os._exit(70)
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, f"clone: {os.strerror(code)}")
    return pid


def fork_bare(child: Callable[[], NoReturn]) -> int:
    """Fork without running any hook of the interpreter, of libraries or of the user's; otherwise as :func:`clone`.

    The child may run plain Python and fork again; it must not start threads.
    """
    sigchld = 17
    pid: int = _libpy.syscall(syscall_number("clone"), sigchld, 0, 0, 0, 0)
    if pid == 0:
        try:
            child()
        finally:
            os._exit(70)
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fork: {os.strerror(code)}")
    return pid


def act_as(uid: int) -> None:
    """Be user and group ``uid`` to whoever asks who made a namespace, but reach files as root, with every capability."""
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setresgid(0, uid, 0)
    os.setresuid(0, uid, 0)
    _libc.setfsgid(0)
    _libc.setfsuid(0)


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, fstype: str | None, flags: int, options: str | None = None) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() if fstype else None,
        flags,
        options.encode() if options else None,
    )
    _check(result, f"mount {fstype or source} on {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A detached copy of the mount at ``path``, as a descriptor that :func:`move_mount` attaches somewhere."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _syscall("open_tree", ctypes.c_int(-100), ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint(flags))


def move_mount(fd: int, target: str) -> None:
    """Attach what :func:`open_tree` returned."""
    _syscall(
        "move_mount",
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(-100),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )


def mount_setattr(
    fd: int, path: str, attributes: int, *, recursive: bool = False, propagation: int = 0, users: int = 0
) -> None:
    """Add mount attributes (MOUNT_ATTR_*) to the mount that ``fd`` and ``path`` name. ``users`` is the user namespace that
    MOUNT_ATTR_IDMAP shows its files through."""
    attr = struct.pack("=QQQQ", attributes, 0, propagation, users)
    _syscall(
        "mount_setattr",
        ctypes.c_int(fd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint((AT_EMPTY_PATH if not path else 0) | (AT_RECURSIVE if recursive else 0)),
        ctypes.c_char_p(attr),
        ctypes.c_size_t(len(attr)),
    )


def prctl(option: int, value: int, extra: int = 0) -> None:
    _check(_libc.prctl(option, value, extra, 0, 0), f"prctl {option}")


def close_fds_from(first: int) -> None:
    """Close every descriptor numbered ``first`` or higher."""
    _syscall("close_range", ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(0))
