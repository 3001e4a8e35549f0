"""Nova as its user meets it: ``nova up``, then the public HTTP API."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

import httpx

from bench.driving import Target, answers
from bench.processes import POSTGRES, Process, Server, free_port, quiet, read_process, tree, without_postgres

READY_LIMIT_S = 60.0
BUILD_LIMIT_S = 120.0
POSTGRES_STOP_LIMIT_S = 10.0
NAME = "nova"
FUNCTIONS = Path(__file__).parent.parent / "functions"


class ApiError(Exception):
    """The control API refused something the benchmark needs."""


@dataclass(frozen=True, slots=True)
class Language:
    runtime: str
    handler: str
    source: str

    def numbered(self, number: int) -> str:
        """The source of one of many functions that differ in code and in answer."""
        return self.source.replace("WHICH = 0", f"WHICH = {number}")


PYTHON = Language("python", "main.handler", (FUNCTIONS / "hello.py").read_text())
NODE = Language("node", "index.handler", (FUNCTIONS / "hello.js").read_text())


class Nova:
    """One running ``nova up`` on a data directory of the benchmark's own."""

    name = NAME

    def __init__(self, nova: Path, folder: Path, data: str = "data") -> None:
        self._data = folder / data
        port = free_port()
        command = [str(nova), "up", "--http", f"127.0.0.1:{port}", "--data-dir", str(self._data)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("NOVA_")}
        self.server = Server(NAME, command, port, folder / f"nova-{data}.log", folder, env)
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def ready(self) -> float:
        """Seconds from the launch to the first 200 of /health/ready."""
        target = Target(self.server.port, "/health/ready", "", method="GET", body="")
        return self.server.wait(partial(answers, target), READY_LIMIT_S)

    def stop(self) -> None:
        self._api.close()
        self.server.stop()
        self._stop_postgres()

    def _stop_postgres(self) -> None:
        """The embedded server is nobody's child; when the daemon could not stop it, its own pid file names it."""
        for lock in self._data.glob("**/postmaster.pid"):
            pid = int((lock.read_text().split() or ["0"])[0])
            process = read_process(pid)
            if process is not None and process.command == POSTGRES:
                os.kill(pid, signal.SIGINT)
                deadline = monotonic() + POSTGRES_STOP_LIMIT_S
                while read_process(pid) is not None and monotonic() < deadline:
                    sleep(0.05)

    def deploy(self, name: str, language: Language, *, number: int = 0, mode: str = "persistent") -> Target:
        """Create the function, wait until it can be called, and say how. ApiError when that does not happen."""
        body = {
            "name": name,
            "runtime": language.runtime,
            "handler": language.handler,
            "code": language.numbered(number),
            "mode": mode,
            "memory_mb": 128,
            "timeout_s": 30,
        }
        created = self._call("POST", "/functions", 201, body)
        deadline = monotonic() + BUILD_LIMIT_S
        while created["compile_status"] not in ("success", "not_required"):
            if created["compile_status"] == "failed" or monotonic() > deadline:
                raise ApiError(f"{name} is {created['compile_status']}: {created.get('compile_error')}")
            sleep(0.05)
            created = self._call("GET", f"/functions/{name}", 200)
        return Target(self.server.port, f"/functions/{name}/invoke", f'"which":{number}')

    def delete(self, name: str) -> None:
        self._call("DELETE", f"/functions/{name}", 204)

    def settle(self) -> bool:
        """Wait until the platform is idle, templates refilled; False if it never was within the limit."""
        return quiet(self.server.pid)

    def processes(self) -> list[Process]:
        """Everything the platform runs but PostgreSQL: daemon, zygotes, templates, instances."""
        return without_postgres(tree(self.server.pid))

    def guests(self) -> list[Process]:
        """All of them but the daemon itself."""
        return [p for p in self.processes() if p.pid != self.server.pid]

    def _call(self, method: str, path: str, status: int, body: dict[str, object] | None = None) -> dict[str, Any]:
        try:
            answer = self._api.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ApiError(f"{method} {path}: {error!r}") from error
        if answer.status_code != status:
            raise ApiError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found


def described() -> str:
    return f"{version('nova-serverless')}, nova up, embedded PostgreSQL, default settings"
