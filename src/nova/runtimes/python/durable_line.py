"""Questions to the host on the worker's own line: no other process stands between, and the call waits in one read.

While a call runs the host writes nothing on its line but answers. Each question has a number, and at most one is open.
"""

import json
import os
import threading
from typing import Any, Final

_READ: Final = 1 << 16


class HostLine:
    """The line of a worker that serves one call at a time; ``reads`` and ``writes`` are its descriptors."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = reads
        self._writes = writes
        self._writing = threading.Lock()
        self._pid = os.getpid()
        self._number = 0
        self._open = False
        self._data = bytearray()

    @property
    def ours(self) -> bool:
        """False in a process that a handler has forked: the line is its parent's."""
        return os.getpid() == self._pid

    def write(self, line: bytes) -> None:
        """Lines of several threads do not mix."""
        with self._writing:
            written = os.write(self._writes, line)
            while written < len(line):
                written += os.write(self._writes, line[written : written + _READ])

    def ask(self, request_id: str, head: bytes, body: bytes) -> tuple[int, Any]:
        """Status and body of the answer. The process ends with its host. Not for two threads at once."""
        self.settle()
        self._number += 1
        self._open = True
        line = b'{"ask": {"number": %d, "request_id": "%b", "head": %b, "body": %b}}\n'
        self.write(line % (self._number, request_id.encode(), head, body))
        answer = self._answer()
        return answer["status"], answer["body"]

    def settle(self) -> None:
        """Read the answer to a question whose asker was interrupted; nobody wants it, and the next call must not find it."""
        if self._open:
            self._answer()

    def _answer(self) -> dict[str, Any]:
        while (end := self._data.find(b"\n")) < 0:
            data = os.read(self._reads, _READ)
            if not data:
                os._exit(0)
            self._data += data
        told: dict[str, Any] = json.loads(self._data[:end])
        del self._data[: end + 1]
        self._open = False
        return told
