"""A language is one folder here; this is its manifest. Unknown keys are errors, and every key is used."""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nova.domain.function import EntryKind, Mode

Family = Literal["interpreted", "wasm", "custom"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkerSection(_Strict):
    """How a worker starts; see ``WorkerLaunch``. ``bootstrap`` is a file of the runtime's folder."""

    kind: Literal["fork", "exec", "none", "lambda"]
    module: str = ""
    argv: tuple[str, ...] = ()
    bootstrap: str = ""


class ToolchainSection(_Strict):
    """Where the language comes from. ``interpreter``: the Python under this process; ``program``: a program on PATH, else
    ``path`` in the Python package ``package``, at least version ``minimum``; ``package``: that interpreter with the Python
    package ``package``, whose version counts; ``none``: the code brings everything."""

    finder: Literal["interpreter", "program", "package", "none"]
    program: str = ""
    package: str = ""
    path: str = ""
    minimum: str = ""


class ImageSection(_Strict):
    """What an image of this runtime holds beside what every image does: ``packages`` of Debian, and the language's program
    at the absolute path ``tool``, ``copied`` there from this host or brought by a package."""

    packages: tuple[str, ...] = ()
    tool: str = ""
    copied: bool = False


class Manifest(_Strict):
    id: str
    name: str
    family: Family
    aliases: tuple[str, ...]
    extension: str
    extra_extensions: tuple[str, ...]
    default_handler: str
    handler_check: str
    module_separator: str
    entry_candidates: tuple[str, ...]
    handler_pattern: str
    modes: tuple[Mode, ...]
    dependency_manifests: tuple[str, ...]
    script: tuple[str, ...]
    template: str
    worker: WorkerSection
    toolchain: ToolchainSection
    image: ImageSection | None = None
    """None: there are no images of this runtime."""

    def accepts_handler(self, handler: str) -> bool:
        """Whether ``handler`` has the form that this runtime understands; it never leads out of the code."""
        if ".." in handler or "//" in handler or handler.endswith("/"):
            return False
        return re.fullmatch(self.handler_check, handler) is not None

    def inline_name(self, handler: str) -> str:
        """The file in which inline code for ``handler`` is stored."""
        return self.entry_names(handler)[0]

    def entry_names(self, handler: str) -> list[str]:
        """The files that may hold ``handler``, best first."""
        if self.worker.kind == "lambda":
            return list(self.entry_candidates)  # the program knows what its handler means
        if not self.module_separator:
            return [handler]
        parts = handler.split(self.module_separator)
        names = []
        if self.module_separator == ".":
            parts = handler.replace("/", ".").split(".")
            for cut in range(len(parts) - 1, 0, -1):
                base = "/".join(parts[:cut])
                names += [f"{base}{self.extension}", f"{base}/__init__{self.extension}"]
            return names
        base = handler.rpartition(".")[0]
        return [f"{base}{extension}" for extension in (self.extension, *self.extra_extensions)]

    def find_entry(self, files: Collection[str], handler: str) -> str | None:
        """The file of ``files`` (paths relative to the code) that holds ``handler``; None when there is none."""
        return next((name for name in self.entry_names(handler) if name in files), None)

    def entry_kind(self, source: str, handler: str, entry: str) -> EntryKind:
        """``script`` when the source of the entry file does not define the handler. The file is not run."""
        if not self.handler_pattern:
            return "handler"
        pattern = self.handler_pattern.replace("{name}", re.escape(self._name_in(handler, entry)))
        return "handler" if re.search(pattern, source) else "script"

    def _name_in(self, handler: str, entry: str) -> str:
        """The first name after the module: the function, or the class that has it."""
        if self.module_separator != ".":
            return handler.rpartition(".")[2]
        module = entry.removesuffix(self.extension).removesuffix("/__init__")
        return handler.replace("/", ".").split(".")[module.count("/") + 1]


def load(folder: Path) -> Manifest:
    """Read ``runtime.toml`` of a runtime's folder. Raises pydantic.ValidationError or tomllib.TOMLDecodeError."""
    with open(folder / "runtime.toml", "rb") as file:
        return Manifest.model_validate(tomllib.load(file))
