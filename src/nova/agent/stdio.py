"""Programs of the custom runtime that stay: lines on stdin and stdout, or on descriptors 3 and 4 if they prefer."""

import fcntl
import os
import select
import socket
import sys
import termios
from typing import Final, NoReturn

from nova.agent.lines import LineReader
from nova.agent.process import end_like, start_program
from nova.agent.serving import INPUT_FD, READ, RESULT_FD, Lines, load, ready, write_all
from nova.agent.worker import Chunk, Ready, Result, parse

_STDIN: Final = "stdin"
_FD3: Final = "fd3"


def main(argv: tuple[str, ...]) -> NoReturn:
    """Start the program and stand between it and the host until one of them ends."""
    lines = Lines()
    loaded, command = load(lines, argv)
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    ours, theirs = socket.socketpair()
    fds = {0: stdin_read, 1: stdout_write, 2: 2, 3: theirs.fileno(), 4: theirs.fileno()}
    pid = start_program(command, loaded.env, loaded.code_dir, fds)
    for fd in (stdin_read, stdout_write):
        os.close(fd)
    theirs.close()
    ready(lines)
    Adapter(pid, stdin_write, stdout_read, ours).run()


class Adapter:
    """Carries lines between the host and one program.

    Until the program has answered once, each input goes to stdin and to descriptor 3. It speaks on 3 and 4 if it read the
    input there, or wrote to 4; else an answer's line on stdout says that it speaks on 0 and 1, where every other line is a
    print.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, line: socket.socket) -> None:
        self._pid = pid
        self._stdout = stdout
        self._line = line
        self._pidfd = os.pidfd_open(pid)
        self._sinks = {_STDIN: stdin, _FD3: line.fileno()}
        self._pending = {_STDIN: bytearray(), _FD3: bytearray()}
        self._stdout_lines = LineReader()
        self._result_lines = LineReader()
        for fd in (stdin, stdout, line.fileno()):
            os.set_blocking(fd, False)

    def run(self) -> NoReturn:
        while True:
            ready = self._wait()
            if INPUT_FD in ready:
                self._from_host()
            self._write_pending()
            if self._stdout in ready:
                self._from_stdout()
            if self._line.fileno() in ready:
                self._from_result_fd()
            if self._pidfd in ready:
                self._ended()

    def _wait(self) -> set[int]:
        poll = select.poll()
        for fd in (INPUT_FD, self._stdout, self._pidfd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        result_fd = self._line.fileno()
        if result_fd >= 0:
            poll.register(result_fd, select.POLLIN | (select.POLLOUT if self._pending.get(_FD3) else 0))
        if self._pending.get(_STDIN):
            poll.register(self._sinks[_STDIN], select.POLLOUT)
        return {fd for fd, _ in poll.poll()}

    def _from_host(self) -> None:
        data = os.read(INPUT_FD, READ)
        if not data:
            os._exit(0)
        for pending in self._pending.values():
            pending += data

    def _write_pending(self) -> None:
        for side, pending in list(self._pending.items()):
            while pending:
                try:
                    del pending[: os.write(self._sinks[side], pending[:READ])]
                except BlockingIOError:
                    break
                except (BrokenPipeError, ConnectionResetError):
                    del self._pending[side]  # the program closed that side; if it ended, its exit tells
                    break

    def _from_stdout(self) -> bool:
        """Read once; True when there may be more."""
        try:
            data = os.read(self._stdout, READ)
        except BlockingIOError:
            return False
        if not data:
            os.close(self._stdout)
            self._stdout = -1
            return False
        if _STDIN not in self._pending:
            write_all(1, data)
            return True
        for line in self._stdout_lines.feed(data):
            if line is not None:  # else far above what is kept of prints
                write_all(RESULT_FD if self._is_answer(line) else 1, line + b"\n")
        return True

    def _is_answer(self, line: bytes) -> bool:
        """Whether a line on stdout answers the call, or is a piece of the answer."""
        if _STDIN not in self._pending or not line.lstrip().startswith(b"{"):
            return False
        if not isinstance(parse(line), Result | Chunk):
            return False
        if _FD3 in self._pending:
            self._speaks(_FD3 if self._has_read_3() else _STDIN)
        return _STDIN in self._pending

    def _has_read_3(self) -> bool:
        """The program took its input from descriptor 3: nothing that was sent there waits any more."""
        waiting = fcntl.ioctl(self._line.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return not self._pending[_FD3] and int.from_bytes(waiting, sys.byteorder) == 0

    def _from_result_fd(self) -> None:
        try:
            data = self._line.recv(READ)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._line.close()
            self._pending.pop(_FD3, None)
            return
        for line in self._result_lines.feed(data):
            self._speaks(_FD3)
            if line is not None and not isinstance(parse(line), Ready):
                write_all(RESULT_FD, line + b"\n")

    def _speaks(self, side: str) -> None:
        """The program has chosen; the other side gets nothing more."""
        if side in self._pending:
            self._pending = {side: self._pending[side]}

    def _ended(self) -> NoReturn:
        """Pass on what the program still said, then end as it did: the agent reports that."""
        _, status = os.waitpid(self._pid, 0)
        while self._stdout >= 0 and self._from_stdout():
            continue
        if self._line.fileno() >= 0:
            self._from_result_fd()
        end_like(status)
