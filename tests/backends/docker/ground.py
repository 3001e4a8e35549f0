"""A Docker engine for the tests of this process and its children, with the images that functions need."""

import atexit
import contextlib
import functools
import http.client
import json
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from nova.execution.backends.docker.backend import DockerBackend, DockerOptions
from nova.execution.images import ImageFile
from tests import imaging
from tests.deploy import engine as engines
from tests.deploy.engine import Engine

_ENV: Final = "ENGINE_OF_THE_TESTS"


def missing() -> str:
    """Why there can be no engine here; empty when there can."""
    if os.geteuid() != 0:
        return "an engine of its own needs root"
    absent = engines.missing(*engines.ENGINE)
    return f"not installed: {', '.join(absent)}" if absent else imaging.obstacle("tar")


def engine() -> Engine:
    """Started for the first who asks; children of this process get the same one. It ends with the process that started it."""
    if known := os.environ.get(_ENV):
        where, _, pid = known.rpartition(":")
        return Engine(Path(where), int(pid))
    folder = Path(tempfile.mkdtemp(prefix="nova-engine-"))
    stack = contextlib.ExitStack()
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    started = stack.enter_context(engines.engine(folder))
    os.environ[_ENV] = f"{folder}:{started.pid}"
    atexit.register(stack.close)
    return started


def options(folder: Path, node: str, **more: Any) -> DockerOptions:
    folder.chmod(0o755)
    fixed: dict[str, Any] = {"run_dir": folder / "docker", "node": node, "runtimes": ("python", "node")}
    return DockerOptions(**(fixed | {"host": f"unix://{engine().folder}/docker.sock"} | more))


def backend(folder: Path, node: str, **more: Any) -> DockerBackend:
    """Not started yet."""
    return DockerBackend(options(folder, node, **more), images())


@dataclass(frozen=True)
class Built:
    """Python's image as it was when a test of this process asked first, whatever becomes of its sources meanwhile."""

    python: ImageFile

    def find(self, runtime: str, form: str) -> ImageFile | None:
        return self.python if (runtime, form) == ("python", "tar") else None

    def require(self, runtime: str, form: str) -> ImageFile:
        assert (runtime, form) == ("python", "tar")
        return self.python


@functools.cache
def images() -> Built:
    return Built(imaging.image("python", "tar"))


def ask(path: str, method: str = "GET") -> Any:
    """What the engine answers, as a value."""
    connection = http.client.HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(engine().folder / "docker.sock"))
    with contextlib.closing(connection):
        connection.request(method, path)
        text = connection.getresponse().read()
    return json.loads(text) if text else None


def containers(node: str) -> list[dict[str, Any]]:
    """All of a node, also those that have ended."""
    filters = quote(json.dumps({"label": [f"nova.node={node}"]}))
    found: list[dict[str, Any]] = ask(f"/containers/json?all=1&filters={filters}")
    return found
