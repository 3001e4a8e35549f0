"""Many callers from one process: an epoll loop over keep-alive connections.

It stands in for wrk on machines without it, and does what wrk cannot: an exact number of calls, calls until it is told to
end, and servers that go away in between. Runs as ``python -I -S crowd.py`` with one JSON command on stdin:

    {"host", "port", "request": <base64>, "expect", "connections", "seconds",
     "status": <of a good answer; default 200>,
     "calls": <end after exactly so many good answers; default: only the time ends it>,
     "collect": <a key of the answers, which are JSON; its values are returned>,
     "until_eof": <end as well when stdin is closed>}
    → {"calls", "wrong", "began": <monotonic clock of the first request>, "seconds", "first_wrong", "collected": [...]}

Each connection sends its next request as soon as its answer is complete. What was answered wrongly, or not at all, is
counted and sent again; a connection that cannot be made is counted too. Slower than wrk by the cost of Python per call,
the same for every subject; the report names the driver, and ``compare`` warns when two runs used different ones.
"""

import base64
import gc
import json
import select
import socket
import sys
from time import monotonic
from typing import Any

IDLE_LIMIT_S = 10.0
"""Without any answer for so long the run ends: a server that hangs must not hang the benchmark."""
RECONNECT_S = 0.02


class Crowd:
    def __init__(self, command: dict[str, Any]) -> None:
        self.address = (command["host"], command["port"])
        self.request = base64.b64decode(command["request"])
        self.expect = command["expect"].encode()
        self.status = b"HTTP/1.1 %d" % command.get("status", 200)
        self.limit = command.get("calls") or sys.maxsize
        self.key = command.get("collect")
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.buffers: dict[int, bytes] = {}
        self.idle: list[int] = []
        self.missing = command["connections"]
        self.calls = self.wrong = self.asked = 0
        self.first_wrong = ""
        self.began = 0.0
        self.collected: list[object] = []

    def connect(self) -> None:
        """Make what is missing of the connections; one that is refused waits for the next time."""
        while self.missing:
            try:
                sock = socket.create_connection(self.address, timeout=5)
            except OSError as error:
                self.failed(repr(error))
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.missing -= 1
            self.sockets[sock.fileno()] = sock
            self.poll.register(sock.fileno(), select.EPOLLIN)
            self.ask(sock.fileno())

    def ask(self, fd: int) -> None:
        self.buffers[fd] = b""
        if self.asked >= self.limit:
            self.idle.append(fd)
            return
        self.asked += 1
        try:
            self.sockets[fd].sendall(self.request)
        except OSError as error:
            self.asked -= 1
            self.failed(repr(error))
            self.drop(fd)

    def failed(self, what: str) -> None:
        self.wrong += 1
        self.first_wrong = self.first_wrong or what

    def drop(self, fd: int) -> None:
        self.poll.unregister(fd)
        del self.buffers[fd]
        self.sockets.pop(fd).close()
        self.missing += 1

    def readable(self, fd: int) -> None:
        try:
            data, what = self.sockets[fd].recv(65536), "the server closed the connection"
        except OSError as error:
            data, what = b"", repr(error)
        if not data:
            if fd in self.idle:
                self.idle.remove(fd)
            else:
                self.asked -= 1
                self.failed(what)
            self.drop(fd)
            return
        data = self.buffers[fd] + data
        if not complete(data):
            self.buffers[fd] = data
            return
        if data.startswith(self.status) and self.expect in data.replace(b" ", b""):
            self.calls += 1
            if self.key is not None:
                self.collected.append(json.loads(data.partition(b"\r\n\r\n")[2])[self.key])
        else:
            self.asked -= 1
            self.failed(data[:400].decode(errors="replace"))
        if b"\r\nconnection: close" in data.lower():
            self.drop(fd)
        else:
            self.ask(fd)

    def again(self) -> None:
        """Whoever stands idle asks for those that failed."""
        while self.idle and self.asked < self.limit:
            self.ask(self.idle.pop())

    def run(self, seconds: float, until_eof: bool) -> float:
        end = sys.stdin.fileno() if until_eof else -1
        if until_eof:
            self.poll.register(end, select.EPOLLIN | select.EPOLLHUP)
        self.began = start = now = heard = monotonic()
        self.connect()
        while now - start < seconds and self.calls < self.limit:
            events = self.poll.poll(RECONNECT_S if self.missing else 1.0)
            if any(fd == end for fd, _ in events):
                break
            for fd, _ in events:
                self.readable(fd)
            now = monotonic()
            heard = now if events else heard
            if now - heard > IDLE_LIMIT_S:
                self.failed(f"no answer at all for {IDLE_LIMIT_S:.0f} s")
                break
            self.connect()
            self.again()
        return monotonic() - start


def complete(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = data[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return data.endswith(b"0\r\n\r\n")
    return len(data) >= end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])


def main() -> None:
    gc.disable()
    command = json.loads(sys.stdin.readline())
    crowd = Crowd(command)
    took = crowd.run(command["seconds"], command.get("until_eof", False))
    answer = {"calls": crowd.calls, "wrong": crowd.wrong, "began": crowd.began, "seconds": took}
    print(json.dumps({**answer, "first_wrong": crowd.first_wrong, "collected": crowd.collected}))


if __name__ == "__main__":
    main()
