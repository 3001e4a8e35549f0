"""The host side of the drivers: every call is made by a process that does nothing else."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

DRIVERS = Path(__file__).parent / "drivers"
BODY = '{"name":"bench"}'


class DriveError(Exception):
    """A driver failed, or the subject answered wrongly; the message says what it answered."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to call and how to know a good answer: ``status``, and ``expect`` in the body, spaces aside."""

    port: int
    path: str
    expect: str
    method: str = "POST"
    body: str = BODY
    host: str = "127.0.0.1"
    status: int = 200

    def request(self) -> bytes:
        """The whole request as it goes over the wire."""
        body = self.body.encode()
        head = (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True)
class Answer:
    """The counted times of a series, and the last answer in full."""

    us: list[float]
    head: str
    body: str

    def header(self, name: str) -> str | None:
        """A header of the last answer. The driver folds heads to lower case, values included."""
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key == name.lower():
                return value.strip()
        return None


def answers(target: Target, timeout_s: float = 2.0) -> bool:
    """Whether one call on a new connection gets a good answer; for waiting until a server is up."""
    data = b""
    try:
        with socket.create_connection((target.host, target.port), timeout=timeout_s) as sock:
            sock.sendall(target.request())
            while piece := sock.recv(65536):
                data += piece
                if b"\r\n\r\n" in data and target.expect.encode() in data.replace(b" ", b""):
                    return data.startswith(b"HTTP/1.1 %d" % target.status)
    except OSError:
        return False
    return False


class Caller:
    """The one-caller process (drivers/caller.py), kept for the whole run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(DRIVERS / "caller.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def series(self, target: Target, count: int, *, skip: int = 0, max_s: float = 60.0) -> Answer:
        """``count`` calls one after another, at most ``max_s`` seconds; DriveError if any answer was wrong."""
        command = {
            "host": target.host,
            "port": target.port,
            "request": base64.b64encode(target.request()).decode(),
            "expect": target.expect,
            "status": target.status,
            "count": count,
            "skip": skip,
            "max_s": max_s,
        }
        if self._process.stdin is None or self._process.stdout is None:
            raise DriveError("the caller process has no pipes")
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise DriveError("the caller process has ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise DriveError("the caller process has ended")
        answer = json.loads(line)
        if answer["wrong"]:
            raise DriveError(f"{answer['wrong']} wrong answers; the first: {answer['first_wrong']}")
        if not answer["us"]:
            raise DriveError(f"no call was finished within {max_s:.0f} s")
        return Answer(answer["us"], answer["head"], answer["body"])


def crowd_driver() -> str:
    return "wrk" if shutil.which("wrk") else "crowd.py"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Totals of a crowd. The latencies at that load are wrk's; our own driver does not keep them (None)."""

    calls: int
    seconds: float
    p50_us: float | None = None
    p99_us: float | None = None

    @property
    def per_s(self) -> float:
        return self.calls / self.seconds


def crowd(target: Target, connections: int, seconds: float) -> Throughput:
    """Calls per second at so many callers; wrk when it is installed, else our own. DriveError on wrong answers."""
    return _wrk(target, connections, seconds) if crowd_driver() == "wrk" else _epoll(target, connections, seconds)


def _wrk(target: Target, connections: int, seconds: float) -> Throughput:
    url = f"http://{target.host}:{target.port}{target.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    command += ["-s", str(DRIVERS / "crowd.lua"), url]
    env = {**os.environ, "BENCH_BODY": target.body}
    answer = _run(command, "", seconds, env)
    line = next((line for line in answer.splitlines() if line.startswith("BENCH ")), None)
    if line is None:
        raise DriveError(f"wrk gave no totals: {answer.strip()[:300]}")
    return _totals(json.loads(line.removeprefix("BENCH ")))


def _epoll(target: Target, connections: int, seconds: float) -> Throughput:
    return _totals(json.loads(_run(_CROWD, _command(target, connections, seconds), seconds, None)))


_PYTHON = [sys.executable, "-I", "-S"]
_CROWD = [*_PYTHON, str(DRIVERS / "crowd.py")]


def _command(target: Target, connections: int, seconds: float, **more: object) -> str:
    command = {
        "host": target.host,
        "port": target.port,
        "request": base64.b64encode(target.request()).decode(),
        "expect": target.expect,
        "status": target.status,
        "connections": connections,
        "seconds": seconds,
        **more,
    }
    return json.dumps(command) + "\n"


@dataclass(frozen=True, slots=True)
class Burst:
    """An exact number of good answers. ``wrong`` counts the others, which were asked for again."""

    calls: int
    began: float
    """when the first was asked for, on the monotonic clock of this machine"""
    seconds: float
    wrong: int
    first_wrong: str
    collected: list[str]
    """the values of the key that was asked for"""


def burst(
    target: Target, connections: int, calls: int, *, max_s: float, collect: str | None = None, faults: bool = False
) -> Burst:
    """Exactly ``calls`` good answers. DriveError when they did not come in ``max_s``, and for wrong ones unless ``faults``."""
    text = _command(target, connections, max_s, calls=calls, collect=collect)
    found = Burst(**json.loads(_run(_CROWD, text, max_s, None)))
    if found.wrong and not faults:
        raise DriveError(f"{found.wrong} wrong answers; the first: {found.first_wrong}")
    if found.calls != calls:
        raise DriveError(f"{found.calls} of {calls} calls within {max_s:.0f} s; {found.first_wrong}")
    return found


@dataclass(frozen=True, slots=True)
class Volley:
    """Answers to many different calls at once: the time of each from the first byte that was sent to any."""

    us: list[float]


def volley(targets: Sequence[Target], max_s: float) -> Volley:
    """Every target once, all at the same moment. DriveError unless all were answered well within ``max_s``."""
    requests = [[base64.b64encode(target.request()).decode(), target.expect] for target in targets]
    command = {"host": targets[0].host, "port": targets[0].port, "requests": requests, "seconds": max_s}
    answer = json.loads(_run([*_PYTHON, str(DRIVERS / "volley.py")], json.dumps(command) + "\n", max_s, None))
    if answer["wrong"]:
        raise DriveError(f"{answer['wrong']} wrong answers; the first: {answer['first_wrong']}")
    return Volley(answer["us"])


class SteadyCrowd:
    """Callers in the background, from entering the block until :meth:`end`; wrong answers are counted, not raised."""

    def __init__(self, target: Target, connections: int, max_s: float) -> None:
        self._command = _command(target, connections, max_s, until_eof=True)
        self._max_s = max_s

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(_CROWD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._process.stdin is None:
            raise DriveError("the crowd process has no pipe")
        self._process.stdin.write(self._command)
        self._process.stdin.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self, seconds: float) -> None:
        """Let the callers call; DriveError when they have ended meanwhile."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            raise DriveError("the crowd ended before its time")

    def end(self) -> Burst:
        """What was counted. DriveError when it ended by itself: nobody called any more while something was measured."""
        if self._process.poll() is not None:
            raise DriveError(f"the crowd ended before its time, which was {self._max_s:.0f} s")
        try:
            answer, _ = self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired as error:
            raise DriveError("the crowd did not end") from error
        return Burst(**json.loads(answer))


def _run(command: list[str], text: str, seconds: float, env: dict[str, str] | None) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=seconds + 30, env=env, check=True
        )
    except subprocess.CalledProcessError as error:
        raise DriveError(f"the driver ended with {error.returncode}: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise DriveError(f"the driver did not end within {error.timeout:.0f} s") from error
    return done.stdout


def _totals(answer: dict[str, float]) -> Throughput:
    if answer["wrong"]:
        raise DriveError(
            f"{answer['wrong']:.0f} wrong answers of {answer['calls']:.0f}; {answer.get('first_wrong', '')}"
        )
    if not answer["calls"]:
        raise DriveError("no call was finished")
    return Throughput(int(answer["calls"]), answer["seconds"], answer.get("p50_us"), answer.get("p99_us"))
