"""Giving up, for good, what the first process of a machine may do: before anything of a function's runs."""

import contextlib
import ctypes
import os
import resource
from typing import Final

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITIES: Final = "/proc/sys/kernel/cap_last_cap"
MAX_FILE_BYTES: Final = 16 << 30

_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def drop(uid: int) -> None:
    """Be user and group ``uid`` without any capability, and without a way to get one. For root. Raises OSError."""
    with open(_CAPABILITIES) as file:
        last = int(file.read())
    for capability in range(last + 1):
        _set(_PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)  # from root to another user: the kernel empties the other sets
    be_tame()


def be_tame() -> None:
    """What holds for every agent outside the sandbox: no new privileges, no core dumps, files of at most 16 GiB."""
    _set(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # the starter may have set less
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    os.umask(0o022)


def _set(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
