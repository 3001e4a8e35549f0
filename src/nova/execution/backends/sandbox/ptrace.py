"""System calls made by a process that stands still, on another's behalf.

While a process is stopped nothing of it runs, so what is seen of its memory holds until it goes on. Only processes that
wait in a system call are taken: the instruction by which they came there is used again, and afterwards the kernel goes on
with that call as if nothing had been. Guest-side code: standard library only.
"""

import contextlib
import ctypes
import os
import platform
import signal
from types import TracebackType
from typing import Final, Self

SUPPORTED: Final = platform.machine() == "x86_64"
MMAP, MADVISE, CLOSE = 9, 28, 3
"""Numbers of system calls."""
_SINGLESTEP, _GETREGS, _SETREGS, _DETACH, _SEIZE, _INTERRUPT = 9, 12, 13, 17, 0x4206, 0x4207
_END_WITH_US: Final = 1 << 20
_WALL: Final = 0x40000000
"""of waitpid: also for processes that are no children of this one"""
_R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP, _RSP, _FS_BASE = 7, 8, 9, 10, 12, 13, 14, 15, 16, 19, 21
"""Where they are in ``struct user_regs_struct`` of x86-64, which has 27 of them."""
_Registers = ctypes.c_uint64 * 27
_ARGUMENTS: Final = (_RDI, _RSI, _RDX, _R10, _R8, _R9)
_SYSCALL: Final = b"\x0f\x05"
_NO_CALL: Final = (1 << 64) - 1

_ptrace: Final = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes, _ptrace.restype = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p], ctypes.c_long


class Busy(OSError):
    """It does not wait in a system call, or has several threads."""


class Stopped:
    """A process that stands still for as long as this context lasts. If whoever looks at it dies meanwhile, so does it.

    Entering raises OSError when it is gone or may not be stopped, :class:`Busy` when it is not waiting.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._held = _Registers()
        self._changed = False
        self._signals: list[int] = []

    def __enter__(self) -> Self:
        self._do(_SEIZE, _END_WITH_US)
        try:
            self._do(_INTERRUPT)
            self._wait()
            if len(os.listdir(f"/proc/{self.pid}/task")) != 1:
                raise Busy(0, "it has several threads")
            self._do(_GETREGS, ctypes.byref(self._held))
            if self._held[_ORIG_RAX] == _NO_CALL or self._instruction() != _SYSCALL:
                raise Busy(0, "it does not wait")
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._changed:
            with contextlib.suppress(OSError):  # killed meanwhile
                self._do(_SETREGS, ctypes.byref(self._held))
        self._let_go()

    @property
    def in_use(self) -> tuple[int, int]:
        """Addresses that it needs whatever it does: its stack and what belongs to its thread."""
        return int(self._held[_RSP]), int(self._held[_FS_BASE])

    def call(self, number: int, *arguments: int) -> int:
        """What the system call returns; a negative number is an error's. Raises OSError when the process has died."""
        registers = _Registers(*self._held)
        registers[_RAX], registers[_ORIG_RAX] = number, _NO_CALL
        registers[_RIP] -= len(_SYSCALL)
        for place, value in zip(_ARGUMENTS, arguments, strict=False):
            registers[place] = value & _NO_CALL
        self._changed = True
        self._do(_SETREGS, ctypes.byref(registers))
        while True:
            self._do(_SINGLESTEP)
            if self._wait():
                break
        self._do(_GETREGS, ctypes.byref(registers))
        return ctypes.c_int64(registers[_RAX]).value

    def _instruction(self) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self._held[_RIP] - len(_SYSCALL))
            return memory.read(len(_SYSCALL))

    def _wait(self) -> bool:
        """Until it stops; whether it has made a step. A signal that stops it is kept for later."""
        _, status = os.waitpid(self.pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(0, "it has ended")
        event, number = status >> 16, os.WSTOPSIG(status)
        if number != signal.SIGTRAP:
            self._signals.append(number)
        return number == signal.SIGTRAP and not event

    def _let_go(self) -> None:
        try:
            self._do(_DETACH)
        except OSError:
            self._await_end()
            return
        for number in self._signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _await_end(self) -> None:
        """It was killed. Its parent hears of that only when this process has."""
        with contextlib.suppress(ChildProcessError):
            while os.WIFSTOPPED(os.waitpid(self.pid, _WALL)[1]):
                pass

    def _do(self, request: int, data: object = None) -> None:
        if _ptrace(request, self.pid, None, data) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"ptrace: {os.strerror(code)}")
