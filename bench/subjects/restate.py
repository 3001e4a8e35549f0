"""Restate (npm, PyPI): durable handlers in a server of their own beside a journal on RocksDB, one process each.

Its steps run in the server of the handler, without any isolation: that is what it is, and it is measured as such.
"""

import os
import platform
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

import httpx

from bench.driving import DriveError, Target, answers
from bench.processes import Server, free_port
from bench.subjects.base import Say, SetupFailed
from bench.subjects.control import FUNCTIONS
from bench.subjects.installing import CACHE, PYTHON_TAG, npm_install, pip_install

NAME = "Restate"
VERSION = "1.7.12"
SDK_VERSION = "1.3.0"
ASGI_SERVER = "hypercorn==0.18.0"
"""What its SDK is documented with: it speaks HTTP/2 without TLS, so that one stream carries a whole invocation."""
_WARM_UP = 5
_READY_LIMIT_S = 60.0
_PACKS = {"x86_64": "restate-server-linux-x64", "aarch64": "restate-server-linux-arm64"}


class Restate:
    """Both programs, installed where they are missing. Raises SetupFailed."""

    def __init__(self, say: Say, cache: Path = CACHE) -> None:
        server, sdk = cache / f"restate-{VERSION}", cache / f"restate-sdk-{SDK_VERSION}-{PYTHON_TAG}"
        self._server = server / "node_modules" / "@restatedev" / _pack() / "bin" / "restate-server"
        self._hypercorn = sdk / "bin" / "hypercorn"
        if not self._server.exists():
            say(f"installing Restate {VERSION} (once)")
            npm_install(server, "@restatedev/restate-server", VERSION)
        if not self._hypercorn.exists():
            say(f"installing Restate's SDK {SDK_VERSION} (once)")
            pip_install(sdk, [f"restate-sdk=={SDK_VERSION}", ASGI_SERVER])
        if not self._server.exists():
            raise SetupFailed("npm installed Restate without a binary for this machine")
        self.described = (
            f"{VERSION} with SDK {SDK_VERSION} for Python, one node with its own settings, handlers in one process"
        )

    def chain(self, folder: Path, *, steps: int, rounds: int, max_s: float) -> list[float]:
        """Milliseconds of each run of a handler of so many steps, called over its ingress one after another."""
        folder.mkdir()
        shutil.copy(FUNCTIONS / "restate_app.py", folder)
        with ExitStack() as stack:
            handlers = self._serve_handlers(folder)
            stack.callback(handlers.stop)
            ingress, admin = free_port(), free_port()
            server = self._serve(folder, ingress, admin)
            stack.callback(server.stop)
            client = stack.enter_context(httpx.Client(timeout=max_s, trust_env=False))
            _ask(client, f"http://127.0.0.1:{admin}/deployments", {"uri": f"http://127.0.0.1:{handlers.port}"})
            return _timed(client, f"http://127.0.0.1:{ingress}/bench/chain", steps, rounds, max_s)

    def _serve_handlers(self, folder: Path) -> Server:
        port = free_port()
        command = [str(self._hypercorn), "--bind", f"127.0.0.1:{port}", "restate_app:app"]
        server = Server("restate's handlers", command, port, folder / "handlers.log", folder)
        server.wait(partial(server.said, "Running on"), _READY_LIMIT_S)
        return server

    def _serve(self, folder: Path, ingress: int, admin: int) -> Server:
        command = [str(self._server), "--no-logo", "--base-dir", str(folder / "data")]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("RESTATE_")} | {
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{free_port()}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
            "RESTATE_DISABLE_TELEMETRY": "true",
        }
        server = Server(NAME, command, ingress, folder / "server.log", folder, environment)
        for port, path in ((admin, "/health"), (ingress, "/restate/health")):
            server.wait(partial(answers, Target(port, path, "", method="GET", body="")), _READY_LIMIT_S)
        return server


def _timed(client: httpx.Client, url: str, steps: int, rounds: int, max_s: float) -> list[float]:
    times: list[float] = []
    began = perf_counter()
    for _ in range(_WARM_UP + rounds):
        start = perf_counter()
        if (answer := _ask(client, url, steps)) != steps:
            raise DriveError(f"the peer answered {answer!r}")
        times.append((perf_counter() - start) * 1000)
        if perf_counter() - began > max_s:
            raise DriveError(f"the peer made {len(times)} runs in {max_s:.0f} s")
    return times[_WARM_UP:]


def _ask(client: httpx.Client, url: str, body: object) -> object:
    try:
        answer = client.post(url, json=body)
    except httpx.HTTPError as error:
        raise DriveError(f"the peer: {error!r}") from error
    if answer.is_error:
        raise DriveError(f"the peer: {answer.status_code} {answer.text[:300]}")
    return answer.json()


def _pack() -> str:
    machine = platform.machine()
    if machine not in _PACKS:
        raise SetupFailed(f"there is no server of Restate for {machine}")
    return _PACKS[machine]
