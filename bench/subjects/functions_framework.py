"""functions-framework for Python (PyPI), served by gunicorn as its documentation says for production.

As installed it has one worker process. Where Nova has a worker for each core it gets one per core, too (``WORKERS``), which
triples its throughput here when the connections happen to be shared evenly.
"""

import os
from pathlib import Path

from bench.driving import Target
from bench.processes import Server, free_port
from bench.subjects.base import Say
from bench.subjects.installing import PYTHON_TAG, pip_install

VERSION = "3.10.2"
SOURCE = Path(__file__).parent.parent / "functions" / "peer_hello.py"


class FunctionsFramework:
    name = "functions-framework"

    def __init__(self, *, each_core: bool = True) -> None:
        self._bin = Path()
        self._each_core = each_core

    def set_up(self, cache: Path, say: Say) -> str:
        home = cache / f"functions-framework-{VERSION}-{PYTHON_TAG}"
        self._bin = home / "bin"
        command = self._bin / "functions-framework"
        if not command.exists():
            say(f"installing functions-framework {VERSION} (once)")
            pip_install(home, [f"functions-framework=={VERSION}"])
        return f"{VERSION}, gunicorn gthread, {workers()} workers"

    def start(self, folder: Path) -> Server:
        port = free_port()
        command = [str(self._bin / "functions-framework"), "--target=hello", f"--source={SOURCE}"]
        command += ["--host=127.0.0.1", f"--port={port}"]
        env = {name: value for name, value in os.environ.items() if name != "WORKERS"}
        if self._each_core:
            env["WORKERS"] = str(workers())
        return Server(self.name, command, port, folder / "functions-framework.log", folder, env)

    def target(self, server: Server) -> Target:
        return Target(server.port, "/", '"hello":"bench"')


def workers() -> int:
    return os.cpu_count() or 1
