"""Bringing a project to the server: upload, wait for the build, say what came of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nova.cli.project import Project
from nova.cli.session import CliError
from nova.client import ApiError, Client, Json, Unreachable

_POLL_S = 0.3
_UNFINISHED = ("pending", "compiling")
_TAIL = 15


class Watcher(Protocol):
    """Who is told what happens."""

    def step(self, text: str) -> None: ...

    def output(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Deployed:
    """``function`` as the API shows it. ``changed`` is false when the server had this code and configuration already."""

    function: Json
    created: bool
    changed: bool

    @property
    def version(self) -> int:
        version: int = self.function["head_version"]
        return version

    @property
    def said(self) -> str:
        name = self.function["name"]
        if not self.changed:
            return f"{name} is unchanged: version {self.version}"
        live = "live" if self.function["version"] == self.version else "not live"
        return f"{name} version {self.version} is {live}"


class BuildFailed(CliError):
    """The build of a version failed; ``log`` is the end of its output."""

    def __init__(self, message: str, log: list[str]) -> None:
        super().__init__(message)
        self.log = log


def deploy(client: Client, project: Project, watcher: Watcher) -> Deployed:
    """Create or replace a function by one version, and wait until that version can be called.

    Nothing is done when the server has the same code and settings. Raises BuildFailed, ApiError, CliError.
    """
    watcher.step(f"{project.name}: packing")
    archive = project.archive()
    before = _existing(client, project.name)
    watcher.step(f"{project.name}: uploading {_size(len(archive))}")
    function = client.upload("function.put", archive, path={"name": project.name}, meta=project.settings)
    if function["compile_status"] in _UNFINISHED:
        watcher.step(f"{project.name}: building version {function['head_version']}")
        function = wait_built(client, function, watcher.output)
    changed = before is None or before["head_version"] != function["head_version"]
    return Deployed(function, created=before is None, changed=changed)


def wait_built(client: Client, function: Json, output: Callable[[str], None]) -> Json:
    """Follow the build of the function's newest version to its end; the function as it is then. Raises BuildFailed."""
    name, version = function["name"], function["head_version"]
    log = _BuildLog(client, function["build_id"], output)
    while function["compile_status"] in _UNFINISHED and function["head_version"] == version:
        log.follow()
        function = client.call("function.get", {"name": name})
    if function["compile_status"] == "failed" and function["head_version"] == version:
        reason = (function["compile_error"] or "no reason was given").strip()
        raise BuildFailed(f"{name}: the build of version {version} failed: {reason}", log.tail)
    return function


class _BuildLog:
    """The output of one build, taken up where it broke off."""

    def __init__(self, client: Client, build_id: str | None, output: Callable[[str], None]) -> None:
        self._client = client
        self._build_id = build_id
        self._output = output
        self._last: str | None = None
        self._unfinished = ""
        self.tail: list[str] = []

    def follow(self) -> None:
        """Pass on what the build prints until it ends, or wait a moment where that cannot be read."""
        started = time.monotonic()
        if self._build_id is not None:
            try:
                for event in self._client.events("build.logs", {"id": self._build_id}, last_event_id=self._last):
                    self._last = event.id or self._last
                    self._lines(event.data.get("text", ""))
            except ApiError as exc:
                if exc.status != 403:  # reading builds is a permission of its own
                    raise
                self._build_id = None
            except Unreachable:
                self._client.call("health.live")  # still there? then it was only the stream
        time.sleep(max(0.0, _POLL_S - (time.monotonic() - started)))

    def _lines(self, text: str) -> None:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            self.tail = [*self.tail[-_TAIL + 1 :], line]
            self._output(line)


def _existing(client: Client, name: str) -> Json | None:
    try:
        return client.call("function.get", {"name": name})
    except ApiError as exc:
        if exc.status != 404:
            raise
        return None


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"
