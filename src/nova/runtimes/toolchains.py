"""Finding what a language needs on this host: real programs, never shims that start another process first."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nova.runtimes.manifest import ToolchainSection

_SYSTEM: Final = Path("/usr")
_ELF: Final = b"\x7fELF"
_VERSION_TIMEOUT_S: Final = 10


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A found toolchain. ``program`` is None where none is needed; ``package`` is the folder of the package it is.

    ``host_paths`` must be visible inside an instance at the same place, beside the system's own folders.
    """

    program: Path | None
    version: str
    host_paths: tuple[Path, ...] = ()
    package: Path | None = None


class ToolchainMissing(Exception):
    """This host has not what the runtime needs; the text says what was looked for."""


def find(section: ToolchainSection) -> Toolchain:
    """Raises :class:`ToolchainMissing`."""
    if section.finder == "none":
        return Toolchain(None, "")
    if section.finder == "interpreter":
        return _interpreter()
    if section.finder == "package":
        return _package(section)
    return _program(section)


def _interpreter() -> Toolchain:
    """The interpreter that this process runs on, without its virtual environment."""
    program = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return Toolchain(program, version, _outside_system(Path(sys.base_prefix).resolve()))


def _package(section: ToolchainSection) -> Toolchain:
    """A Python package of this process, for the interpreter without its virtual environment."""
    spec = importlib.util.find_spec(section.package)
    found = [Path(folder).resolve() for folder in (spec.submodule_search_locations or [])] if spec else []
    if not found:
        raise ToolchainMissing(f"the Python package {section.package} is not installed")
    version = importlib.metadata.version(section.package)
    if _numbers(version) < _numbers(section.minimum):
        text = f"{section.package} is version {version}; at least {section.minimum} is needed"
        raise ToolchainMissing(text)
    python = _interpreter()
    return Toolchain(python.program, version, (*python.host_paths, found[0]), found[0])


def _program(section: ToolchainSection) -> Toolchain:
    problems = []
    for program, prefix in _places(section):
        problem, version = _check(program, section.minimum)
        if not problem:
            return Toolchain(program, version, _outside_system(prefix))
        problems.append(problem)
    tried = "; ".join(problems) or f"{section.program} is not on PATH and {section.package} is not installed"
    raise ToolchainMissing(tried)


def _places(section: ToolchainSection) -> list[tuple[Path, Path]]:
    """Candidates with the folder that each needs around it."""
    places = []
    for folder in os.get_exec_path():
        found = shutil.which(section.program, path=folder)
        if found:
            program = Path(os.path.realpath(found))
            places.append((program, program.parent.parent))
    spec = importlib.util.find_spec(section.package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        program = Path(root) / section.path
        if program.exists():
            places.append((Path(os.path.realpath(program)), Path(root).resolve()))
    return places


def _check(program: Path, minimum: str) -> tuple[str, str]:
    """Whether it runs and is new enough: a problem (or nothing) and its version."""
    with open(program, "rb") as file:
        if file.read(4) != _ELF:
            return f"{program} is a script that starts another program", ""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{program} does not run: {error}", ""
    version = done.stdout.strip().removeprefix("v")
    if _numbers(version) < _numbers(minimum):
        return f"{program} is version {version}; at least {minimum} is needed", ""
    return "", version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _outside_system(prefix: Path) -> tuple[Path, ...]:
    return () if prefix == _SYSTEM or _SYSTEM in prefix.parents else (prefix,)
