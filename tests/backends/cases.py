"""The backends that the conformance suite runs on. Each has ``tests/backends/<name>/case.py`` with a class ``Case``."""

import importlib
import importlib.util
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, cast

from nova.execution.backends.base import Backend

NAMES = ("sandbox", "docker", "firecracker", "qemu", "wasm")


class NotTranslated(Exception):
    """The case's runtime has no such function; the message says why. The suite says so instead of a result."""


class Case(Protocol):
    """``runtime`` and ``runtime_version`` are what instances are made of. ``cycles``: instances made and stopped in a row by
    the test of leaks."""

    name: str
    runtime: str
    runtime_version: str
    cycles: int

    def missing(self) -> str:
        """Why this host cannot run it; empty when it can, and then it has to."""
        ...

    def backend(self, folder: Path, node: str = "conf") -> AbstractAsyncContextManager[Backend]:
        """Started, and closed afterwards. ``folder`` is an empty one, or that of a backend of this node that was killed."""
        ...

    def artifact(self, code: str, folder: Path) -> Path:
        """A folder below ``folder`` that holds that function: ``code`` is Python with ``handler`` (``main.handler``).

        Raises :class:`NotTranslated` where another language has no counterpart.
        """
        ...

    def leftovers(self, node: str) -> list[str]:
        """Processes, files, containers, interfaces … of that node that are there now."""
        ...


def cases() -> list[Case]:
    """Of every backend that has one."""
    found = []
    for name in NAMES:
        if importlib.util.find_spec(f"tests.backends.{name}") is None:
            continue
        if importlib.util.find_spec(f"tests.backends.{name}.case") is not None:
            found.append(case(name))
    return found


def case(name: str) -> Case:
    return cast(Case, importlib.import_module(f"tests.backends.{name}.case").Case())
