"""Many callers from one process: an epoll loop over keep-alive connections, for machines without wrk.

Runs as ``python -I -S crowd.py`` with one JSON command on stdin:

    {"host", "port", "request": <base64>, "expect", "connections", "seconds"}
    → {"calls", "wrong", "seconds", "first_wrong"}

Each connection sends its next request as soon as its answer is complete. Slower than wrk by the cost of Python per
call, the same for every subject; the report names the driver, and ``compare`` warns when two runs used different ones.
"""

import base64
import gc
import json
import select
import socket
import sys
from time import monotonic

IDLE_LIMIT_S = 10.0
"""Without any answer for so long the run ends: a server that hangs must not hang the benchmark."""


class Crowd:
    def __init__(self, address: tuple[str, int], request: bytes, expect: bytes) -> None:
        self.address = address
        self.request = request
        self.expect = expect
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.buffers: dict[int, bytes] = {}
        self.calls = self.wrong = 0
        self.first_wrong = ""

    def connect(self) -> None:
        sock = socket.create_connection(self.address, timeout=5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets[sock.fileno()] = sock
        self.buffers[sock.fileno()] = b""
        self.poll.register(sock.fileno(), select.EPOLLIN)
        sock.sendall(self.request)

    def reconnect(self, fd: int) -> None:
        self.poll.unregister(fd)
        del self.buffers[fd]
        self.sockets.pop(fd).close()
        self.connect()

    def readable(self, fd: int) -> None:
        try:
            data = self.sockets[fd].recv(65536)
        except OSError as error:
            data, self.first_wrong = b"", self.first_wrong or repr(error)
        if not data:
            self.wrong += 1
            self.first_wrong = self.first_wrong or "the server closed the connection"
            self.reconnect(fd)
            return
        data = self.buffers[fd] + data
        if not complete(data):
            self.buffers[fd] = data
            return
        if data.startswith(b"HTTP/1.1 200") and self.expect in data.replace(b" ", b""):
            self.calls += 1
        else:
            self.wrong += 1
            self.first_wrong = self.first_wrong or data[:400].decode(errors="replace")
        if b"\r\nconnection: close" in data.lower():
            self.reconnect(fd)
        else:
            self.buffers[fd] = b""
            self.sockets[fd].sendall(self.request)

    def run(self, connections: int, seconds: float) -> float:
        for _ in range(connections):
            self.connect()
        start = now = monotonic()
        while now - start < seconds:
            events = self.poll.poll(IDLE_LIMIT_S)
            if not events:
                self.wrong += 1
                self.first_wrong = self.first_wrong or f"no answer at all for {IDLE_LIMIT_S:.0f} s"
                break
            for fd, _ in events:
                self.readable(fd)
            now = monotonic()
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
    crowd = Crowd((command["host"], command["port"]), base64.b64decode(command["request"]), command["expect"].encode())
    took = crowd.run(command["connections"], command["seconds"])
    print(json.dumps({"calls": crowd.calls, "wrong": crowd.wrong, "seconds": took, "first_wrong": crowd.first_wrong}))


if __name__ == "__main__":
    main()
