"""One caller on one keep-alive connection: a raw blocking socket and nothing else between the clock and the server.

Runs as its own process (``python -I -S caller.py``), takes one JSON command a line on stdin and answers one JSON line:

    {"host", "port", "request": <base64 of a whole HTTP request>, "expect": <in every good body, spaces aside>,
     "count", "max_s", "skip": <calls at the front that warm up and are not counted>,
     "status": <of a good answer; default 200>}
    → {"us": [...], "wrong": n, "first_wrong": text, "head": <head of the last answer>, "body": <last body>}

Only the standard library and only what a blocking client costs; the connection is made again, off the clock, when the
server closed it while idle.
"""

import base64
import gc
import json
import select
import socket
import sys
from time import monotonic, perf_counter_ns

CALL_TIMEOUT_S = 60.0


class Caller:
    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.socket: socket.socket | None = None

    def ready(self) -> socket.socket:
        """The open connection; a fresh one if the server has closed the old (readable while idle means closed)."""
        if self.socket is not None and select.select([self.socket], [], [], 0)[0]:
            self.socket.close()
            self.socket = None
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=CALL_TIMEOUT_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.socket

    def call(self, request: bytes) -> tuple[bytes, bytes, int]:
        """Head, body and the nanoseconds from the first byte out to the last byte in."""
        sock = self.ready()
        start = perf_counter_ns()
        sock.sendall(request)
        data = sock.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += more(sock)
        head = data[:end].lower()
        body = data[end + 4 :]
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            length = int(head[at + 17 :].split(b"\r\n", 1)[0])
            while len(body) < length:
                body += more(sock)
        elif b"transfer-encoding: chunked" in head:
            while not body.endswith(b"0\r\n\r\n"):
                body += more(sock)
        took = perf_counter_ns() - start
        if b"\r\nconnection: close" in head:
            sock.close()
            self.socket = None
        return head, body, took

    def drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection in the middle of an answer")
    return data


def run(caller: Caller, command: dict[str, object]) -> dict[str, object]:
    request = base64.b64decode(str(command["request"]))
    expect = str(command["expect"]).encode()
    count, skip = int(str(command["count"])), int(str(command["skip"]))
    status = f"http/1.1 {command.get('status', 200)}".encode()
    deadline = monotonic() + float(str(command["max_s"]))
    samples: list[float] = []
    wrong, first_wrong, head, body = 0, "", b"", b""
    for index in range(skip + count):
        try:
            head, body, took = caller.call(request)
            good = head.startswith(status) and expect in body.replace(b" ", b"")
            problem = "" if good else (head.split(b"\r\n", 1)[0] + b" " + body[:300]).decode(errors="replace")
        except OSError as error:
            caller.drop()
            good, problem, took = False, repr(error), 0
        if not good:
            wrong += 1
            first_wrong = first_wrong or problem
        elif index >= skip:
            samples.append(took / 1000)
        if monotonic() > deadline:
            break
    return {
        "us": samples,
        "wrong": wrong,
        "first_wrong": first_wrong,
        "head": head.decode("latin-1"),
        "body": body.decode(errors="replace"),
    }


def main() -> None:
    gc.disable()
    callers: dict[tuple[str, int], Caller] = {}
    for line in sys.stdin:
        command = json.loads(line)
        address = (command["host"], command["port"])
        caller = callers.setdefault(address, Caller(*address))
        print(json.dumps(run(caller, command)), flush=True)


if __name__ == "__main__":
    main()
