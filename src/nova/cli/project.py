"""A function on disk: a folder with its code and, if it likes, a ``function.yaml`` with its settings."""

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pathspec import GitIgnoreSpec

from nova.api.functions import FunctionSpec, Source
from nova.cli.session import CliError
from nova.domain.names import is_name

MANIFEST = "function.yaml"
IGNORE = ".novaignore"
"""Patterns of files that are not deployed, as in ``.gitignore``."""
ALWAYS_IGNORED = (
    ".git/",
    ".hg/",
    ".svn/",
    "node_modules/",
    "__pycache__/",
    ".venv/",
    "venv/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
    ".DS_Store",
    "*.pyc",
    f"/{MANIFEST}",
    f"/{IGNORE}",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SETTINGS = [name for name in FunctionSpec.model_fields if name not in Source.model_fields]
KEYS = ("name", *_SETTINGS, "dependency_files")
"""What ``function.yaml`` may hold: the fields of the function API, without those that carry code."""


@dataclass(frozen=True)
class Project:
    """``settings`` are the fields of the function but its name and code; ``folder`` holds the code. ``ignored`` are patterns
    of what stays behind, beside those of ``.novaignore``."""

    folder: Path
    name: str
    settings: dict[str, Any]
    ignored: tuple[str, ...] = ALWAYS_IGNORED

    @classmethod
    def read(cls, folder: Path, *, name: str | None = None, runtime: str | None = None) -> "Project":
        """A folder with what its ``function.yaml`` says; ``name`` and ``runtime`` win over it.

        Raises CliError for a folder, file or key that is not acceptable.
        """
        if not folder.is_dir():
            raise CliError(f"{folder} is not a folder", 2)
        settings = _manifest(folder / MANIFEST)
        found = name or settings.pop("name", None) or folder.resolve().name
        settings.pop("name", None)
        if not isinstance(found, str) or not is_name(found):
            raise CliError(
                f"{found!r} cannot be a function's name: letters, digits, - and _, at most 64; say --name", 2
            )
        if runtime is not None:
            settings["runtime"] = runtime
        if not settings.get("runtime"):
            raise CliError(f"which runtime? Say --runtime, or write `runtime: …` into {folder / MANIFEST}", 2)
        return cls(folder, found, settings)

    @cached_property
    def _ignored(self) -> GitIgnoreSpec:
        try:
            own = (self.folder / IGNORE).read_text().splitlines()
        except FileNotFoundError:
            own = []
        return GitIgnoreSpec.from_lines([*self.ignored, *own])

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every file and link that is deployed, by path inside the folder, sorted."""
        yield from sorted(self._walk(self.folder))

    def _walk(self, folder: Path) -> Iterator[tuple[str, Path]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                inside = path.relative_to(self.folder).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    if not self._ignored.match_file(inside + "/"):
                        yield from self._walk(path)
                elif not self._ignored.match_file(inside):
                    yield inside, path

    def archive(self) -> bytes:
        """The code as a zip. Equal folders give equal bytes: no times, no owners, no order of the file system."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for inside, path in self.files():
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    mode, data = stat.S_IFLNK | 0o777, os.fsencode(path.readlink())
                elif stat.S_ISREG(kind):
                    executable = bool(kind & stat.S_IXUSR)
                    mode, data = stat.S_IFREG | (0o755 if executable else 0o644), path.read_bytes()
                else:
                    raise CliError(f"{path} is neither a file nor a link; name it in {IGNORE}")
                entry = zipfile.ZipInfo(inside, _EPOCH)
                entry.external_attr = mode << 16
                archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
            if not archive.namelist():
                raise CliError(f"there is no code in {self.folder}", 2)
        return buffer.getvalue()

    def fingerprint(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file that matters, to see when something was saved."""
        watched = [*(path for _, path in self.files()), self.folder / MANIFEST, self.folder / IGNORE]
        found = {}
        for path in watched:
            try:
                state = path.lstat()
            except FileNotFoundError:
                continue
            found[str(path)] = (state.st_size, state.st_mtime_ns)
        return found


def _manifest(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise CliError(f"{file}: {exc}", 2) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CliError(f"{file}: fields are expected, such as `runtime: python`", 2)
    for key in content:
        if key in Source.model_fields and key not in KEYS:
            raise CliError(f"{file}: {key!r} does not belong there: the code is what the folder holds", 2)
        if key not in KEYS:
            raise CliError(f"{file}: {key!r} is not known; there are: {', '.join(KEYS)}", 2)
    return dict(content)
