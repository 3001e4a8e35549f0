"""functions-framework for Python (PyPI), served by gunicorn as its documentation says for production.

Its default is one worker process; we give it one per core (``WORKERS``), which on this kind of machine doubles its
throughput: a peer is measured at its best, not at its default.
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

    def __init__(self) -> None:
        self._bin = Path()

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
        env = {**os.environ, "WORKERS": str(workers())}
        return Server(self.name, command, port, folder / "functions-framework.log", folder, env)

    def target(self, server: Server) -> Target:
        return Target(server.port, "/", '"hello":"bench"')


def workers() -> int:
    return os.cpu_count() or 1
