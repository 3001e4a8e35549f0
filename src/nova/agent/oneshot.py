"""Process mode for runtimes that cannot fork a loaded worker: a new worker for every call, loaded ahead of it."""

import os
import socket
from dataclasses import dataclass
from typing import NoReturn

from nova.agent.config import WorkerLaunch
from nova.agent.lines import LineReader
from nova.agent.messages import GuestError
from nova.agent.process import exit_error, kill_children, start_program
from nova.agent.serving import READ, Lines, Loaded, load
from nova.agent.worker import Chunk, Ending, Ready, error_line, parse


def main(launch: WorkerLaunch) -> NoReturn:
    """Serve calls until the host goes away; the process that served one is gone before its answer is sent."""
    lines = Lines()
    loaded, _ = load(lines, ())
    child = Child.start(launch, loaded)
    lines.write(child.greeting)
    while (line := lines.read()) is not None:
        answer = child.serve(line, lines)
        kill_children()
        child.line.close()
        lines.write(answer)
        child = Child.start(launch, loaded)
    os._exit(0)


@dataclass(slots=True)
class Child:
    """A worker for one call. ``greeting`` is its ready line, or the error line that says why it could not load."""

    pid: int
    line: socket.socket
    greeting: bytes = b""

    @classmethod
    def start(cls, launch: WorkerLaunch, loaded: Loaded) -> "Child":
        ours, theirs = socket.socketpair()
        standard = {0: os.open(os.devnull, os.O_RDONLY), 1: 1, 2: 2}
        fds = {**standard, 3: theirs.fileno(), 4: theirs.fileno()}
        pid = start_program(launch.argv, {**loaded.env, **dict(launch.env)}, loaded.code_dir, fds)
        os.close(standard[0])
        theirs.close()
        child = cls(pid, ours)
        child.greeting = child._exchange(loaded.raw + b"\n", None)
        return child

    def serve(self, line: bytes, host: Lines) -> bytes:
        """The answer's line to a call's line. Pieces before it go on to the host as they come."""
        if not isinstance(parse(self.greeting.rstrip()), Ready):
            return self.greeting
        return self._exchange(line + b"\n", host)

    def _exchange(self, line: bytes, host: Lines | None) -> bytes:
        reader = LineReader()
        try:
            self.line.sendall(line)
            while data := self.line.recv(READ):
                for answer in reader.feed(data):
                    if answer is None:
                        return error_line(GuestError("Nova.OutputTooLarge", "the worker's line is too long"))
                    event = parse(answer)
                    if host is not None and isinstance(event, Chunk):
                        host.write(answer + b"\n")
                    elif not isinstance(event, Ending):  # every worker here ends after its call
                        return answer + b"\n"
        except ConnectionError:
            pass  # it ended in the middle; its exit status below says how
        return error_line(exit_error(os.waitpid(self.pid, 0)[1]))
