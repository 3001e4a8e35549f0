"""Many different calls at the same moment: each on a connection of its own, all connected before the first byte is sent.

Runs as ``python -I -S volley.py`` with one JSON command on stdin:

    {"host", "port", "requests": [[<base64>, <expect>], ...], "seconds": <at most>}
    → {"us": [<from the first byte sent to this answer, per good answer>], "wrong", "first_wrong"}

What is not answered in time counts as wrong.
"""

import base64
import gc
import json
import select
import socket
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any


@dataclass
class Call:
    socket: socket.socket
    request: bytes
    expect: bytes
    answer: bytes = b""

    @property
    def good(self) -> bool:
        return self.answer.startswith(b"HTTP/1.1 200") and self.expect in self.answer.replace(b" ", b"")


def volley(command: dict[str, Any]) -> dict[str, Any]:
    poll = select.epoll()
    waiting: dict[int, Call] = {}
    for encoded, expect in command["requests"]:
        sock = socket.create_connection((command["host"], command["port"]), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock.fileno(), select.EPOLLIN)
        waiting[sock.fileno()] = Call(sock, base64.b64decode(encoded), expect.encode())
    us: list[float] = []
    wrong, first_wrong = 0, ""
    start = perf_counter()
    for call in waiting.values():
        call.socket.sendall(call.request)
    while waiting and perf_counter() - start < command["seconds"]:
        for fd, _ in poll.poll(0.2):
            call = waiting[fd]
            data = call.socket.recv(65536)
            call.answer += data
            if data and not complete(call.answer):
                continue
            poll.unregister(fd)
            del waiting[fd]
            call.socket.close()
            if call.good:
                us.append((perf_counter() - start) * 1e6)
            else:
                wrong += 1
                first_wrong = first_wrong or call.answer[:400].decode(errors="replace") or "no answer"
    if waiting:
        wrong += len(waiting)
        first_wrong = first_wrong or f"no answer within {command['seconds']} s"
    return {"us": us, "wrong": wrong, "first_wrong": first_wrong}


def complete(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = data[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    return at >= 0 and len(data) >= end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])


if __name__ == "__main__":
    gc.disable()
    print(json.dumps(volley(json.loads(sys.stdin.readline()))))
