"""Where code comes from: text in the request, files, a path on the server, or an uploaded archive. Each becomes a tree."""

import base64
import binascii
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nova.api.functions import FileContent, Source
from nova.config import FunctionSettings, LimitSettings
from nova.domain.build import MANIFESTS
from nova.domain.tree import EXECUTABLE, FILE, LINK, MAX_DEPTH, MIB, SourceFile, Tree, TreeLimits
from nova.errors import FieldError, NovaError, invalid
from nova.payload import too_large

_IGNORED = frozenset({".git", "__pycache__"})
"""Folders that code_path leaves out: what tools keep beside the code."""


def limits_of(settings: LimitSettings) -> TreeLimits:
    return TreeLimits(settings.files, settings.file_mb * MIB, settings.unpacked_mb * MIB)


def given_forms(source: Source) -> list[str]:
    """Which of the exclusive forms of code a request uses."""
    return [form for form in ("code", "files", "code_path") if getattr(source, form) is not None]


def require_one_form(source: Source, *, archive: bool = False) -> None:
    """Refuse a request with no code, or with more than one form of it."""
    forms = given_forms(source) + (["archive"] if archive else [])
    if len(forms) == 1:
        return
    detail = (
        f"give one of code, files and code_path, not {' and '.join(forms)}"
        if forms
        else ("give the code: one of code, files and code_path")
    )
    raise NovaError("validation_failed", detail, errors=[FieldError(form, detail) for form in forms or ["code"]])


def read_source(source: Source, inline_path: str, limits: LimitSettings, functions: FunctionSettings) -> Tree:
    """The tree in a request that has exactly one form of code. Blocking; run it in a thread.

    ``inline_path`` is where a single file goes. Raises ``validation_failed``, ``payload_too_large`` or ``forbidden``.
    """
    bounds = limits_of(limits)
    if source.code is not None:
        data = source.code.encode()
        if len(data) > limits.code_mb * MIB:
            raise too_large(limits.code_mb * MIB)
        return Tree([SourceFile(inline_path, FILE, data)], bounds)
    if source.files is not None:
        return Tree((_file(path, content) for path, content in source.files.items()), bounds)
    if source.code_path is not None:
        return _read_path(source.code_path, inline_path, bounds, functions.code_path_roots)
    raise ValueError("no form of code")


def dependency_files(runtime: str, files: Mapping[str, str]) -> list[SourceFile]:
    """The manifests that a request brings beside its code. Refuses names that the runtime's installer does not read."""
    known = MANIFESTS.get(runtime, ())
    for name in files:
        if name not in known:
            offer = f"{runtime} takes {', '.join(known)}" if known else f"{runtime} takes none"
            raise invalid(f"dependency_files.{name}", f"is not a dependency manifest: {offer}")
    return [SourceFile(name, FILE, text.encode()) for name, text in files.items()]


def _file(path: str, content: str | FileContent) -> SourceFile:
    if isinstance(content, str):
        return SourceFile(path, FILE, content.encode())
    try:
        data = base64.b64decode(content.base64, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"files.{path}.base64", "is not base64") from None
    return SourceFile(path, EXECUTABLE if content.executable else FILE, data)


def _read_path(given: str, inline_path: str, bounds: TreeLimits, roots: Iterable[Path]) -> Tree:
    """Copy a file or folder from inside the allowed folders.

    The path is opened first and judged by where the descriptor really is, so that a link swapped in between cannot lead
    elsewhere; inside a folder nothing is followed.
    """
    refused = NovaError("forbidden", "code_path: not inside a folder of functions.code_path_roots")
    if not os.path.isabs(given) or "\0" in given:
        raise invalid("code_path", "must be an absolute path")
    allowed = [os.path.realpath(root.expanduser()) for root in roots]
    real = os.path.realpath(given)
    if not any(_inside(real, root) for root in allowed):
        raise refused
    try:
        top = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise invalid("code_path", "cannot be read") from None
    try:
        opened = os.readlink(f"/proc/self/fd/{top}")
        if not any(_inside(opened, root) for root in allowed):
            raise refused
        if stat.S_ISDIR(os.fstat(top).st_mode):
            tree = Tree(_walk(top, "", bounds), bounds)
            if not len(tree):
                raise invalid("code_path", "the folder has no files")
            return tree
        return Tree([SourceFile(inline_path, *_read(top, given, bounds))], bounds)
    except OSError:
        raise invalid("code_path", "cannot be read") from None
    finally:
        os.close(top)


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _walk(folder: int, prefix: str, bounds: TreeLimits) -> Iterator[SourceFile]:
    """The files below an open folder, by descriptors only."""
    if prefix.count("/") > MAX_DEPTH:
        raise invalid("code_path", f"{prefix[:40]!r}… is deeper than {MAX_DEPTH}")
    for name in sorted(os.listdir(folder)):
        path = prefix + name
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            yield SourceFile(path, LINK, os.fsencode(os.readlink(name, dir_fd=folder)))
            continue
        if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
            raise invalid("code_path", f"{path!r} is a special file")
        if name in _IGNORED and stat.S_ISDIR(found.st_mode):
            continue
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            if stat.S_ISDIR(os.fstat(opened).st_mode):
                yield from _walk(opened, path + "/", bounds)
            else:
                yield SourceFile(path, *_read(opened, path, bounds))
        finally:
            os.close(opened)


def _read(opened: int, path: str, bounds: TreeLimits) -> tuple[int, bytes]:
    """Mode and bytes of an open regular file."""
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode):
        raise invalid("code_path", f"{path!r} is a special file")
    bounds.check_file(path, found.st_size)
    with open(opened, "rb", closefd=False) as file:
        data = file.read(bounds.file_bytes + 1)
    return (EXECUTABLE if found.st_mode & stat.S_IXUSR else FILE), data
