"""What installing dependencies means, per installer: the steps that turn a source tree into what is mounted."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from nova.domain.build import BuildPlan, Installer
from nova.errors import NovaError
from nova.execution.backends.base import Bind
from nova.execution.builds_box import Step
from nova.execution.inside import inside
from nova.execution.registries import RUN_PIP, Access, Npm, Pip, find_npm, find_pip
from nova.runtimes.registry import Resolved, Runtimes
from nova.runtimes.toolchains import Toolchain

_PIP_HINTS = {"(from versions: none)": "there is no such package, or no wheel of it for this Python and platform"}
Network = Literal["registries", "none"]


class Installers:
    """pip and npm of this host, looked up when a build first needs them, and found again if they were missing."""

    def __init__(self, runtimes: Runtimes, *, network: Network, fuel: int = 0) -> None:
        """With ``fuel`` modules are compiled to count what they use up."""
        self._runtimes = runtimes
        self._network = network
        self._fuel = fuel
        self._pip: Pip | None = None
        self._npm: Npm | None = None
        self._lookup = asyncio.Lock()

    def forwarder(self) -> tuple[str, ...]:
        """The interpreter that runs the first process of a step with network."""
        return _python(self._interpreter())

    async def toolchain(self, runtime: Resolved, installer: Installer) -> str:
        """What the installed versions depend on, as text. Raises ``runtime_unavailable``."""
        if installer == "wasmtime":
            return f"{runtime.runtime} {runtime.toolchain.version}{', fuel' * (self._fuel > 0)}"
        found = await (self._find_pip() if installer == "pip" else self._find_npm(_program(runtime.toolchain)))
        return f"{runtime.runtime} {runtime.toolchain.version}, {installer} {found.version}"

    async def steps(self, runtime: Resolved, plan: BuildPlan, entry: str) -> Sequence[Step]:
        """Raises ``runtime_unavailable``."""
        if plan.installer == "wasmtime":
            return wasm_steps(runtime, entry, self._fuel)
        if plan.installer == "pip":
            pip = await self._find_pip()
            return pip_steps(replace(pip, access=self._limited(pip.access)), runtime.toolchain, plan)
        npm = await self._find_npm(_program(runtime.toolchain))
        forwarder = _host_binds(self._interpreter())
        return npm_steps(replace(npm, access=self._limited(npm.access)), runtime.toolchain, plan, forwarder)

    def _interpreter(self) -> Toolchain:
        return self._runtimes.resolve("python").toolchain

    def _limited(self, access: Access) -> Access:
        return access if self._network == "registries" else replace(access, registries=frozenset())

    async def _find_pip(self) -> Pip:
        async with self._lookup:
            if self._pip is None:
                self._pip = await find_pip()
            return self._pip

    async def _find_npm(self, node: Path) -> Npm:
        async with self._lookup:
            if self._npm is None:
                self._npm = await find_npm(node)
            return self._npm


def pip_steps(pip: Pip, python: Toolchain, plan: BuildPlan) -> Sequence[Step]:
    """Wheels only, so that no code of a package runs; then bytecode, since nobody can write it beside the code later."""
    binds = _host_binds(python)
    command = (
        *_python(python),
        *("-c", RUN_PIP, pip.search_path, "install", "--requirement", f"/code/{plan.manifest}"),
        *("--target", f"/scratch/code/{plan.target}", "--only-binary", ":all:", "--cache-dir", "/cache"),
        *(
            "--no-compile",
            "--no-input",
            "--no-warn-script-location",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ),
    )
    if not pip.access.registries:
        command = (*command, "--retries", "0")
    compile_all = ("-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash", "/code")
    return (
        Step("pip install", command, {}, (*binds, Bind(pip.source, pip.inside)), pip.access, hints=_PIP_HINTS),
        Step("compile to bytecode", (*_python(python), *compile_all), binds=binds, required=False),
    )


def npm_steps(npm: Npm, node: Toolchain, plan: BuildPlan, forwarder: tuple[Bind, ...]) -> Sequence[Step]:
    """From the lock file when there is one. No script of a package runs."""
    program = inside(_program(node))
    command = (
        *(program, inside(npm.root / "bin" / "npm-cli.js"), "ci" if plan.locked else "install"),
        *("--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress"),
        *("--no-package-lock",) * (not plan.locked),
        *("--cache=/cache", "--logs-max=0", "--loglevel=http"),
        # npm's own patience is over a minute, with nothing to see meanwhile
        *(
            ("--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=10000")
            if npm.access.registries
            else ("--offline",)
        ),
    )
    binds = dict.fromkeys((*_host_binds(node), *forwarder, *_outside(npm.root)))
    env = {"PATH": f"{Path(program).parent}:/usr/local/bin:/usr/bin:/bin"}
    return (Step(f"npm {command[2]}", command, env, tuple(binds), npm.access),)


def wasm_steps(runtime: Resolved, entry: str, fuel: int) -> Sequence[Step]:
    """Compile the module that is the entry, and remove what the code has brought along in place of compiled ones."""
    package = runtime.toolchain.package
    if package is None:
        raise NovaError("runtime_unavailable", "this runtime has no compiler")
    script = inside(runtime.folder / "compile.py")
    command = (
        *(*_python(runtime.toolchain), script, inside(package), runtime.toolchain.version),
        *("/code", entry, str(fuel)),
    )
    binds = tuple(Bind(path, inside(path)) for path in runtime.host_paths)
    return (Step("compile the module", command, {}, binds),)


def _python(python: Toolchain) -> tuple[str, ...]:
    return (inside(_program(python)), "-I", "-S")


def _program(toolchain: Toolchain) -> Path:
    if toolchain.program is None:
        raise NovaError("runtime_unavailable", "this runtime has no program that installs dependencies")
    return toolchain.program


def _host_binds(toolchain: Toolchain) -> tuple[Bind, ...]:
    return tuple(Bind(path, inside(path)) for path in toolchain.host_paths)


def _outside(path: Path) -> tuple[Bind, ...]:
    return () if path.is_relative_to("/usr") else (Bind(path, inside(path)),)
