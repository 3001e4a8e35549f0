"""The filter as a program: run by a small interpreter here, for every architecture that has a table."""

import errno
import re
import struct
from pathlib import Path

import pytest

from nova.execution.backends.sandbox import seccomp

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def run(program: bytes, arch: int, number: int, *args: int) -> int:
    """What the kernel would answer to this system call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = position = 0
    for _ in range(len(code)):
        op, if_true, if_false, value = code[position]
        position += 1
        if op == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif op == 0x06:
            return int(value)
        else:
            hit = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[op]
            position += if_true if hit else if_false
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("machine", ARCHES)
def test_every_denied_call_is_denied_and_every_other_allowed(machine: str) -> None:
    program, arch = seccomp.build_filter(machine), ARCHES[machine]
    denied = set(seccomp._DENIED[machine].values())
    special = set(seccomp._BY_ARGUMENT[machine].values())
    for number in range(463):
        if number in special:
            continue
        expected = ERRNO | errno.EPERM if number in denied else ALLOW
        assert run(program, arch, number) == expected, number
    for number in (463, 500, 1 << 20):
        assert run(program, arch, number) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", ARCHES)
def test_other_architectures_and_x32_kill(machine: str) -> None:
    program, arch = seccomp.build_filter(machine), ARCHES[machine]
    assert run(program, 0x40000003, 1) == KILL, "32-bit calls on a 64-bit kernel"
    assert run(program, arch, 0x40000000 | 1) == KILL


@pytest.mark.parametrize("machine", ARCHES)
def test_arguments(machine: str) -> None:
    program, arch = seccomp.build_filter(machine), ARCHES[machine]
    numbers = seccomp._BY_ARGUMENT[machine]
    denied = ERRNO | errno.EPERM
    assert run(program, arch, numbers["clone"], 17) == ALLOW
    assert run(program, arch, numbers["clone"], 0x3D0F00) == ALLOW, "a thread"
    for flag in (0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x02000000, 0x04000000, 0x08000000):
        assert run(program, arch, numbers["clone"], flag | 17) == denied
    assert run(program, arch, numbers["clone3"], 0) == ERRNO | errno.ENOSYS
    for family, allowed in {1: True, 2: True, 10: True, 16: False, 17: False, 38: False, 40: False, 44: False}.items():
        assert run(program, arch, numbers["socket"], family) == (ALLOW if allowed else ERRNO | errno.EAFNOSUPPORT)
    assert run(program, arch, numbers["ioctl"], 0, 0x5413) == ALLOW
    assert run(program, arch, numbers["ioctl"], 0, 0x5412) == denied
    assert run(program, arch, numbers["personality"], 0xFFFFFFFF) == ALLOW
    assert run(program, arch, numbers["personality"], 0x0040000) == denied


def test_numbers_are_those_of_the_system_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    known = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    ours = {**seccomp._DENIED["x86_64"], **seccomp._BY_ARGUMENT["x86_64"]}
    assert {name: number for name, number in ours.items() if name in known and known[name] != number} == {}


def test_a_program_fits_the_kernels_limit() -> None:
    assert all(len(seccomp.build_filter(machine)) // 8 <= 4096 for machine in ARCHES)
