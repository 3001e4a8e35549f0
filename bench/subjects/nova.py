"""Nova as its user meets it: ``nova up``, then the public HTTP API."""

import os
import signal
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self

from bench.driving import Target, answers
from bench.processes import POSTGRES, Process, Server, free_port, quiet, read_process, tree, without_postgres
from bench.subjects.control import Control

READY_LIMIT_S = 60.0
POSTGRES_STOP_LIMIT_S = 10.0
REST_S = 65.0
NAME = "nova"


class Nova(Control):
    """One running ``nova up`` on a data directory of the benchmark's own. ``settings`` are environment variables."""

    name = NAME

    def __init__(self, nova: Path, folder: Path, data: str = "data", settings: Mapping[str, str] | None = None) -> None:
        self.data = folder / data
        port = free_port()
        command = [str(nova), "up", "--http", f"127.0.0.1:{port}", "--data-dir", str(self.data)]
        environment = clean_environment() | dict(settings or {})
        self.server = Server(NAME, command, port, folder / f"nova-{data}.log", folder, environment)
        super().__init__(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def ready(self) -> float:
        """Seconds from the launch to the first 200 of /health/ready."""
        target = Target(self.server.port, "/health/ready", "", method="GET", body="")
        return self.server.wait(partial(answers, target), READY_LIMIT_S)

    def stop(self) -> None:
        self.close()
        self.server.stop()
        stop_postgres(self.data)

    def settle(self) -> bool:
        """Wait until the platform is idle, templates refilled; False if it never was within the limit."""
        return quiet(self.server.pid)

    def rest(self) -> None:
        """Wait until demand is forgotten: templates beyond those that are always kept go a minute after the last was missed."""
        sleep(REST_S)
        self.settle()

    def processes(self) -> list[Process]:
        """Everything the platform runs but PostgreSQL: daemon, zygotes, templates, instances."""
        return without_postgres(tree(self.server.pid))

    def guests(self) -> list[Process]:
        """All of them but the daemon itself."""
        return [p for p in self.processes() if p.pid != self.server.pid]


def clean_environment() -> dict[str, str]:
    """The environment without settings that would reach the platform."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("NOVA_", "ZENITH_"))}


def stop_postgres(data: Path) -> None:
    """The embedded server is nobody's child; when the daemon could not stop it, its own pid file names it."""
    for lock in data.glob("**/postmaster.pid"):
        pid = int((lock.read_text().split() or ["0"])[0])
        process = read_process(pid)
        if process is not None and process.command == POSTGRES:
            os.kill(pid, signal.SIGINT)
            deadline = monotonic() + POSTGRES_STOP_LIMIT_S
            while read_process(pid) is not None and monotonic() < deadline:
                sleep(0.05)


def described() -> str:
    return f"{version('nova-serverless')}, nova up, embedded PostgreSQL, default settings"
