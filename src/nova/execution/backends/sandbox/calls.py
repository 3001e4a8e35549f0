"""System calls that a child makes before it runs anything else, prepared by its parent.

The child itself is then one loop over functions of the C library. Every Python function that it ran instead would be memory
that it does not share any more, for as long as the instance lives. Guest-side code: standard library only.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from nova.execution.backends.sandbox import kernel

Call = tuple[str, Callable[[], int]]
"""What it does, for the message of a failure; and what does it: a negative result is one, with errno set."""

_CAPABILITY_VERSION_3: Final = 0x20080522
_SET_MODE_FILTER: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.syscall.restype = ctypes.c_long
# A fork must not happen with the interpreter's lock released, so it goes through a PyDLL.
_libpy: Final = ctypes.PyDLL(None, use_errno=True)
_libpy.syscall.argtypes = [ctypes.c_long, *[ctypes.c_ulong] * 5]
_libpy.syscall.restype = ctypes.c_long


def make(calls: Iterable[Call]) -> None:
    """One after the other. Raises OSError."""
    for what, call in calls:
        if call() < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")


def clone_bare(flags: int) -> Callable[[], int]:
    """To fork into new namespaces, as a child of the caller's own parent, without running any hook: 0 in the child, its pid in
    the parent, negative if it failed. The child may run plain Python and fork again; it must not start threads."""
    number = kernel.syscall_number("clone")
    return partial(_libpy.syscall, number, flags | kernel.CLONE_PARENT | signal.SIGCHLD.value, 0, 0, 0, 0)


def enter_network(fd: int) -> int:
    """0, or negative if it failed."""
    entered: int = _libc.setns(fd, kernel.CLONE_NEWNET)
    return entered


def unshare(flags: int) -> Call:
    return "unshare", partial(_libc.unshare, flags)


def hostname(name: bytes) -> Call:
    return "sethostname", partial(_libc.sethostname, name, len(name))


def mount(source: str, target: str, fstype: str | None, flags: int, options: str = "") -> Call:
    kind = fstype.encode() if fstype else None
    do = partial(_libc.mount, os.fsencode(source), os.fsencode(target), kind, flags, options.encode() or None)
    return f"mount {fstype or source} on {target}", do


def chdir(path: str) -> Call:
    return f"chdir {path}", partial(_libc.chdir, os.fsencode(path))


def pivot_root_here() -> list[Call]:
    """Make the current directory (a mount point) the root and drop everything that was mounted before."""
    number = kernel.syscall_number("pivot_root")
    here = ctypes.c_char_p(b".")
    return [
        ("pivot_root", partial(_libc.syscall, ctypes.c_long(number), here, here)),
        ("umount .", partial(_libc.umount2, b".", kernel.MNT_DETACH)),
        chdir("/"),
    ]


def become(uid: int) -> list[Call]:
    """User and group, in all their forms."""
    return [
        ("setresgid", partial(_libc.setresgid, uid, uid, uid)),
        ("setresuid", partial(_libc.setresuid, uid, uid, uid)),
    ]


def umask(mask: int) -> Call:
    return "umask", partial(_libc.umask, mask)


def limit(resource: int, value: int) -> Call:
    """Soft and hard limit of this process and its descendants."""
    both = ctypes.create_string_buffer(struct.pack("@LL", value, value))
    return f"setrlimit {resource}", partial(_libc.setrlimit, resource, both)


def prctl(option: int, value: int, extra: int = 0) -> Call:
    return f"prctl {option}", partial(_libc.prctl, option, value, extra, 0, 0)


def drop_capabilities() -> list[Call]:
    """Give up every capability for good: bounding and ambient sets, secure bits, then the sets in force."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    none = ctypes.create_string_buffer(24)
    number = ctypes.c_long(kernel.syscall_number("capset"))
    return [
        *(prctl(kernel.PR_CAPBSET_DROP, capability) for capability in range(kernel.LAST_CAPABILITY + 1)),
        prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL),
        prctl(kernel.PR_SET_SECUREBITS, kernel.SECBITS_LOCKED_DOWN),
        ("capset", partial(_libc.syscall, number, header, none)),
    ]


def load_seccomp(program: bytes) -> Call:
    """Install a BPF program (8 bytes per instruction) for this thread and all its descendants."""
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; } with native padding.
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    number = ctypes.c_long(kernel.syscall_number("seccomp"))
    _programs.append(buffer)
    return "seccomp", partial(_libc.syscall, number, ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(0), fprog)


_programs: Final[list[object]] = []
"""what the calls point to"""
