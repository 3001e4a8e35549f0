"""The system-call filter of an instance, as a BPF program.

What is not known when this was written is answered with ENOSYS, so a newer kernel adds nothing to what guests reach.
Known calls that reach beyond the instance (namespaces, mounts, tracing, kernel interfaces) are answered with EPERM; a few
are allowed by argument. The program is a binary search over ranges of call numbers: seven comparisons for any call.

Guest-side code: standard library only.
"""

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from nova.execution.backends.sandbox.kernel import MACHINE, NEW_NAMESPACES

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000

_LD_ABS = 0x20
_JMP_JEQ = 0x15
_JMP_JGE = 0x35
_JMP_JSET = 0x45
_AND = 0x54
_RET = 0x06

_OFFSET_NR = 0
_OFFSET_ARCH = 4
_OFFSET_ARG0 = 16
_OFFSET_ARG1 = 24
_OFFSET_ARG2 = 32

_LAST_KNOWN = 462
"""mseal, the newest call that is allowed."""
_X32_BIT = 0x40000000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SOCK_RAW, _SOCK_TYPE_MASK = 3, 0xF
_SOL_IP, _SOL_IPV6 = 0, 41
_PACKET_TABLES = (64, 65, 96, 97, 128, 129)
"""Options of iptables, ip6tables, arptables and ebtables."""
_INTERFACE_SETTERS = (0x890B, 0x890C, 0x8914, 0x8916, 0x8918, 0x891A, 0x891C, 0x891E, 0x8922, 0x8923, 0x8924, 0x8946)
_SETSOCKOPT = {"x86_64": 54, "aarch64": 208}
PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_DENIED_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "process_mrelease": 448,
    "set_mempolicy_home_node": 450,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
}

_DENIED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "ptrace": 101,
        "syslog": 103,
        "uselib": 134,
        "ustat": 136,
        "sysfs": 139,
        "vhangup": 153,
        "modify_ldt": 154,
        "pivot_root": 155,
        "_sysctl": 156,
        "adjtimex": 159,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "create_module": 174,
        "init_module": 175,
        "delete_module": 176,
        "get_kernel_syms": 177,
        "query_module": 178,
        "quotactl": 179,
        "nfsservctl": 180,
        "lookup_dcookie": 212,
        "clock_settime": 227,
        "vserver": 236,
        "mbind": 237,
        "set_mempolicy": 238,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "migrate_pages": 256,
        "unshare": 272,
        "move_pages": 279,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "fanotify_mark": 301,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "clock_adjtime": 305,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
        **_DENIED_COMMON,
    },
    "aarch64": {
        "lookup_dcookie": 18,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "nfsservctl": 42,
        "chroot": 51,
        "vhangup": 58,
        "quotactl": 60,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "sethostname": 161,
        "setdomainname": 162,
        "settimeofday": 170,
        "adjtimex": 171,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "mbind": 235,
        "set_mempolicy": 237,
        "migrate_pages": 238,
        "move_pages": 239,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "fanotify_mark": 263,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "clock_adjtime": 266,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
        **_DENIED_COMMON,
    },
}

_BY_ARGUMENT: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"clone": 56, "socket": 41, "ioctl": 16, "personality": 135, "clone3": 435},
    "aarch64": {"clone": 220, "socket": 198, "ioctl": 29, "personality": 92, "clone3": 435},
}


@dataclass(frozen=True, slots=True)
class _Op:
    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def encode(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.if_true, self.if_false, self.value)


_Block = list[_Op]


def _ret(value: int) -> _Block:
    return [_Op(_RET, value)]


def _fail(error: int) -> _Block:
    return _ret(_ERRNO | error)


def _one_of(offset: int, values: tuple[int, ...], hit: int, miss: int) -> _Block:
    """Return ``hit`` if the 32-bit word at ``offset`` is one of ``values``, else ``miss``."""
    count = len(values)
    tests = [_Op(_JMP_JEQ, value, if_true=count - index) for index, value in enumerate(values)]
    return [_Op(_LD_ABS, offset), *tests, _Op(_RET, miss), _Op(_RET, hit)]


def _argument_checks(machine: str) -> dict[int, _Block]:
    numbers = _BY_ARGUMENT[machine]
    eperm = _ERRNO | errno.EPERM
    return {
        numbers["clone"]: [
            _Op(_LD_ABS, _OFFSET_ARG0),
            _Op(_JMP_JSET, NEW_NAMESPACES & 0xFFFFFF00, if_true=1),
            _Op(_RET, _ALLOW),
            _Op(_RET, eperm),
        ],
        # Its flags are behind a pointer that a filter cannot read; libraries fall back to clone.
        numbers["clone3"]: _fail(errno.ENOSYS),
        numbers["socket"]: _one_of(
            _OFFSET_ARG0, (_AF_UNIX, _AF_INET, _AF_INET6), hit=_ALLOW, miss=_ERRNO | errno.EAFNOSUPPORT
        ),
        numbers["ioctl"]: _one_of(_OFFSET_ARG1, (_TIOCSTI, _TIOCLINUX), hit=eperm, miss=_ALLOW),
        numbers["personality"]: _one_of(_OFFSET_ARG0, PERSONALITIES, hit=_ALLOW, miss=eperm),
    }


def _donor_checks(machine: str) -> dict[int, _Block]:
    """What differs where a function is kept loaded: its forks may enter the places prepared for them, so it must not use
    what they could do there until they have dropped their capabilities: raw sockets, interfaces, packet tables."""
    numbers = _BY_ARGUMENT[machine]
    eperm = _ERRNO | errno.EPERM
    families = (_AF_UNIX, _AF_INET, _AF_INET6)
    return {
        _DENIED[machine]["setns"]: _ret(_ALLOW),
        numbers["socket"]: [
            _Op(_LD_ABS, _OFFSET_ARG1),
            _Op(_AND, _SOCK_TYPE_MASK),
            _Op(_JMP_JEQ, _SOCK_RAW, if_false=1),
            _Op(_RET, eperm),
            *_one_of(_OFFSET_ARG0, families, hit=_ALLOW, miss=_ERRNO | errno.EAFNOSUPPORT),
        ],
        numbers["ioctl"]: _one_of(_OFFSET_ARG1, (_TIOCSTI, _TIOCLINUX, *_INTERFACE_SETTERS), hit=eperm, miss=_ALLOW),
        _SETSOCKOPT[machine]: [
            _Op(_LD_ABS, _OFFSET_ARG1),
            _Op(_JMP_JEQ, _SOL_IP, if_true=2),
            _Op(_JMP_JEQ, _SOL_IPV6, if_true=1),
            _Op(_RET, _ALLOW),
            *_one_of(_OFFSET_ARG2, _PACKET_TABLES, hit=eperm, miss=_ALLOW),
        ],
    }


def _segments(machine: str, donor: bool) -> list[tuple[int, _Block]]:
    """(first call number, what to do) in order; each holds until the next one begins."""
    special = _argument_checks(machine)
    special.update((number, _fail(errno.EPERM)) for number in _DENIED[machine].values())
    if donor:
        special.update(_donor_checks(machine))
    segments: list[tuple[int, _Block]] = []
    for number in range(_LAST_KNOWN + 1):
        block = special.get(number, _ret(_ALLOW))
        if not segments or segments[-1][1] != block:
            segments.append((number, block))
    segments.append((_LAST_KNOWN + 1, _fail(errno.ENOSYS)))
    return segments


def _search(segments: list[tuple[int, _Block]]) -> _Block:
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    low, high = _search(segments[:middle]), _search(segments[middle:])
    return [_Op(_JMP_JGE, segments[middle][0], if_true=len(low)), *low, *high]


def denied(machine: str = MACHINE) -> frozenset[str]:
    """The names of the calls that are answered with EPERM whatever their arguments."""
    return frozenset(_DENIED[machine])


def build_filter(machine: str = MACHINE, *, donor: bool = False) -> bytes:
    """The program for :func:`kernel.load_seccomp`. Raises KeyError on a machine that has no table.

    ``donor``: for an instance that is kept as a function's snapshot, see :func:`_donor_checks`.
    """
    prologue = [
        _Op(_LD_ABS, _OFFSET_ARCH),
        _Op(_JMP_JEQ, _AUDIT_ARCH[machine], if_true=1),
        _Op(_RET, _KILL_PROCESS),
        _Op(_LD_ABS, _OFFSET_NR),
        _Op(_JMP_JGE, _X32_BIT, if_false=1),
        _Op(_RET, _KILL_PROCESS),
    ]
    return b"".join(op.encode() for op in [*prologue, *_search(_segments(machine, donor))])
