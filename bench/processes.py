"""Servers as child processes, and what /proc says about their whole tree."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep

PROC = Path("/proc")
POSTGRES = "postgres"
STOP_GRACE_S = 15.0
LEFTOVER_GRACE_S = 2.0


class ServerFailed(Exception):
    """A server ended or was not ready in time; the message holds the tail of its log."""


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    command: str
    ticks: int
    """CPU time used, in clock ticks (10 ms)"""
    started: int
    """start time in clock ticks after boot: tells a recycled pid from the process we knew"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_process(pid: int) -> Process | None:
    """The process, or None when it is gone or only waits to be reaped."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    command, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] == "Z":
        return None
    return Process(pid, int(fields[1]), command, int(fields[11]) + int(fields[12]), int(fields[19]))


def tree(root: int) -> list[Process]:
    """``root`` and all its descendants. Instances are its children's children: no process may hide from it."""
    everyone = [p for entry in PROC.iterdir() if entry.name.isdigit() and (p := read_process(int(entry.name)))]
    children: dict[int, list[Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    found = [p for p in everyone if p.pid == root]
    for process in found:
        found.extend(children.get(process.pid, ()))
    return found


def without_postgres(processes: Sequence[Process]) -> list[Process]:
    return [p for p in processes if p.command != POSTGRES]


def pss_mb(pid: int) -> float:
    """Proportional set size in MiB: shared pages count by share. PermissionError when the kernel does not tell us."""
    try:
        return _field_kb((PROC / str(pid) / "smaps_rollup").read_text(), "Pss:") / 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def rss_mb(pid: int) -> float:
    """Resident set size in MiB, shared pages counted in full."""
    return _field_kb((PROC / str(pid) / "status").read_text(), "VmRSS:") / 1024


def total_pss_mb(processes: Sequence[Process]) -> float:
    return sum(pss_mb(p.pid) for p in processes)


def _field_kb(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def quiet(root: int, window_s: float = 0.08, limit_s: float = 3.0) -> bool:
    """Wait until the tree (without PostgreSQL) neither computes nor changes for ``window_s``; False after ``limit_s``.

    This is how "the pool is idle" is known without asking the platform: what refills templates uses CPU time.
    """
    deadline = monotonic() + limit_s
    before = _activity(root)
    while monotonic() < deadline:
        sleep(window_s)
        now = _activity(root)
        if now == before:
            return True
        before = now
    return False


def calm(window_s: float = 0.2, limit_s: float = 5.0, busy: float = 0.05) -> bool:
    """Wait until less than ``busy`` of the machine's processor time is used; False after ``limit_s``.

    What one subject has left to do when its round is over (records, roll-ups) is not to count against the next.
    """
    deadline = monotonic() + limit_s
    idle, total = _processor_time()
    while monotonic() < deadline:
        sleep(window_s)
        idle_now, total_now = _processor_time()
        if idle_now - idle >= (1 - busy) * (total_now - total):
            return True
        idle, total = idle_now, total_now
    return False


def _processor_time() -> tuple[int, int]:
    """Ticks of all processors: idle (waiting for disks is), and all."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _activity(root: int) -> dict[tuple[int, int], int]:
    return {(p.pid, p.started): p.ticks for p in without_postgres(tree(root))}


class Server:
    """A child process that serves on ``port``. Its output goes to ``log``; ``stop`` ends all that it started."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, log: Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.port = port
        self._log = log
        self._launched = perf_counter()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    list(command),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env) if env is not None else None,
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerFailed(f"{name} cannot be launched: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def wait(self, answered: Callable[[], bool], limit_s: float) -> float:
        """Seconds from the launch until ``answered`` says yes, asked every 2 ms; ServerFailed after ``limit_s``."""
        while perf_counter() - self._launched < limit_s:
            if answered():
                return perf_counter() - self._launched
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
            sleep(0.002)
        raise ServerFailed(f"{self.name} was not ready within {limit_s:.0f} s:\n{self.tail()}")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def said(self, text: str) -> bool:
        """Is this in its log? With a log of its own for each launch it tells what this process has said."""
        return text in self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL for the one process, as a fault: what it leaves behind is for the others to deal with."""
        self._process.kill()
        self._process.wait()

    def wait_end(self, limit_s: float) -> None:
        """Until it has ended by itself; ServerFailed when it has not, or not with 0."""
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{self.name} did not end within {limit_s:.0f} s:\n{self.tail()}") from None
        if code != 0:
            raise ServerFailed(f"{self.name} ended with {code}:\n{self.tail()}")

    def stop(self) -> None:
        """SIGTERM, ``STOP_GRACE_S``, then SIGKILL for whatever of its tree is left. Safe to call twice."""
        family = tree(self.pid)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                family = tree(self.pid)
                self._process.kill()
                self._process.wait()
        for process in _wait_gone(family, LEFTOVER_GRACE_S):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        _wait_gone(family, LEFTOVER_GRACE_S)


def _wait_gone(family: Sequence[Process], limit_s: float) -> list[Process]:
    """Those of ``family`` that still run after at most ``limit_s``."""
    deadline = monotonic() + limit_s
    while (left := _alive(family)) and monotonic() < deadline:
        sleep(0.01)
    return left


def _alive(family: Sequence[Process]) -> list[Process]:
    """Those of ``family`` that still run; a recycled pid is not one of them."""
    return [p for p in family if (now := read_process(p.pid)) is not None and now.started == p.started]
