"""Nova as six processes and more: every plane by its own command, on one PostgreSQL server and one data directory."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.driving import Target, answers
from bench.processes import Server, ServerFailed, free_port
from bench.subjects.control import Control
from bench.subjects.nova import clean_environment
from bench.subjects.postgres import Postgres

NAME = "six planes"
READY_LIMIT_S = 60.0
DRAIN_LIMIT_S = 60.0
SINGLE = ("nova", "corona", "aurora", "zenith")
_READY = '"ready"'


class Planes(Control):
    """One cluster. Processes are called by the name of their plane, the second one of a kind by ``comet-1`` and so on.

    ``pinned``: the core that a process may use, by its name. ``absent``: those that are not started with the others.
    """

    def __init__(
        self,
        programs: Path,
        folder: Path,
        *,
        comets: int = 1,
        nebulas: int = 1,
        pinned: Mapping[str, int] | None = None,
        absent: Sequence[str] = (),
    ) -> None:
        folder.mkdir()
        self._folder = folder
        self._postgres = Postgres(folder / "database")
        self._launches = 0
        self._pinned = dict(pinned or {})
        self._absent = set(absent)
        self._programs = programs
        self.comets = _numbered("comet", comets)
        self.nebulas = _numbered("nebula", nebulas)
        self._ports = {name: free_port() for name in (*SINGLE, *self.comets, *self.nebulas)}
        self._commands = self._all_commands()
        self.running: dict[str, Server] = {}
        super().__init__(self._ports["zenith"])

    @property
    def dsn(self) -> str:
        return self._postgres.dsn

    @property
    def everyone(self) -> list[str]:
        return list(self._commands)

    def _all_commands(self) -> dict[str, list[str]]:
        at = {name: f"127.0.0.1:{port}" for name, port in self._ports.items()}
        comets = ["--comet-grpc", ",".join(at[name] for name in self.comets)]
        commands = {"nova": ["nova", "daemon", "--planes", "control", "--http", at["nova"]]}
        commands |= {name: ["comet", "daemon", "--grpc", at[name]] for name in self.comets}
        commands["corona"] = ["corona", "daemon", *comets, "--health-addr", at["corona"]]
        commands |= {name: ["nebula", "daemon", *comets, "--health-addr", at[name]] for name in self.nebulas}
        commands["aurora"] = ["aurora", "daemon", "--listen", at["aurora"]]
        nova_url = ["--nova-url", f"http://{at['nova']}"]
        commands["zenith"] = ["zenith", "serve", "--listen", at["zenith"], *comets, *nova_url]
        return commands

    def __enter__(self) -> Self:
        self._postgres.__enter__()
        try:
            for name in self.everyone:
                if name not in self._absent:
                    self.running[name] = self.launch(name)
            for server in self.running.values():
                self.await_ready(server)
            target = Target(self._ports["zenith"], "/health/ready", "", method="GET", body="")
            self.running["zenith"].wait(partial(answers, target), READY_LIMIT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        for name in reversed(self.everyone):
            if name in self.running:
                self.running[name].stop()
        self._postgres.__exit__(kind, error, tb)

    def launch(self, name: str, *flags: str) -> Server:
        """A process of this name, beside the one that runs; it is not waited for."""
        self._launches += 1
        program, *more = self._commands[name]
        command = [str(self._programs / program), *more, *flags, "--pg-dsn", self.dsn]
        command += ["--data-dir", str(self._folder / "data"), "--log-format", "json"]
        if name in self._pinned:
            command = ["taskset", "-c", str(self._pinned[name]), *command]
        log = self._folder / f"{name}.{self._launches}.log"
        return Server(name, command, self._ports[name], log, self._folder, clean_environment())

    def await_ready(self, server: Server) -> None:
        """Until the process has said that it serves."""
        server.wait(partial(server.said, _READY), READY_LIMIT_S)

    def start(self, name: str) -> None:
        """Launch it and wait until it serves."""
        self.running[name] = server = self.launch(name)
        self.await_ready(server)

    def stop(self, name: str) -> None:
        self.running.pop(name).stop()

    def kill(self, name: str) -> None:
        """SIGKILL, and another one in its place, which is not waited for. ServerFailed when it had ended by itself."""
        victim = self.running[name]
        if not victim.running:
            raise ServerFailed(f"{name} had ended by itself:\n{victim.tail()}")
        victim.kill()
        self.running[name] = self.launch(name)

    def restart(self, name: str) -> None:
        """As an operator would without anybody noticing: whoever listens for calls gets a successor before it ends."""
        old = self.running[name]
        if name in ("zenith", "nova"):
            self.running[name] = self.launch(name, "--take-over")
            self.await_ready(self.running[name])
            old.wait_end(DRAIN_LIMIT_S)
        elif name in self.comets:
            self.start(name)
            old.stop()
        else:
            old.stop()
            self.start(name)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" if number else name for number in range(count)]
