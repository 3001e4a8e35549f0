"""workerd (npm): the JavaScript runtime of Cloudflare Workers, one isolate in one C++ process."""

import shutil
from pathlib import Path

from bench.driving import Target
from bench.processes import Server, free_port
from bench.subjects.base import Say, SetupFailed
from bench.subjects.installing import npm_install

VERSION = "1.20261117.1"
SOURCE = Path(__file__).parent.parent / "functions" / "peer_hello.js"

CONFIG = """using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .hello)],
  sockets = [(name = "http", address = "127.0.0.1:{port}", http = (), service = "main")]
);
const hello :Workerd.Worker = (
  modules = [(name = "hello.js", esModule = embed "hello.js")],
  compatibilityDate = "2024-09-01"
);
"""


class Workerd:
    name = "workerd"

    def __init__(self) -> None:
        self._binary = Path()

    def set_up(self, cache: Path, say: Say) -> str:
        home = cache / f"workerd-{VERSION}"
        if (found := _binary(home)) is None:
            say(f"installing workerd {VERSION} (once)")
            npm_install(home, "workerd", VERSION)
            found = _binary(home)
        if found is None:
            raise SetupFailed("npm installed workerd without a binary for this machine")
        self._binary = found
        return f"{VERSION}, one JavaScript worker"

    def start(self, folder: Path) -> Server:
        port = free_port()
        here = folder / "workerd"
        here.mkdir(exist_ok=True)
        shutil.copy(SOURCE, here / "hello.js")
        (here / "config.capnp").write_text(CONFIG.format(port=port))
        command = [str(self._binary), "serve", str(here / "config.capnp")]
        return Server(self.name, command, port, folder / "workerd.log", here)

    def target(self, server: Server) -> Target:
        return Target(server.port, "/", '"hello":"bench"')


def _binary(home: Path) -> Path | None:
    return next(iter((home / "node_modules" / "@cloudflare").glob("workerd-linux-*/bin/workerd")), None)
