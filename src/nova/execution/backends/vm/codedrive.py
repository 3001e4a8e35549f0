"""An ext4 image of a folder, made without mounting anything: what a machine sees as its code or as a layer.

``mkfs.ext4 -d`` walks the folder itself, so no file name is ever part of a command. What it wrote is read back with
``debugfs`` and compared, because neither program can be trusted to report a file that did not fit.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nova.errors import NovaError, storage_full

LEAST_MB: Final = 4
MOST_MB: Final = 512
_BLOCK: Final = 4096
_INODE: Final = 256
_SPARE_INODES: Final = 32
_SPARE_MB: Final = 1
_TOOL_S: Final = 120.0
_LOST: Final = "lost+found"
"""mkfs makes it in every image."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """``content`` is the SHA-256 of a file, the target of a link, empty for a directory."""

    kind: str
    content: bytes


def missing_tools() -> str:
    """The programs that are not installed here, as a text; empty when drives can be made."""
    return ", ".join(name for name in ("mkfs.ext4", "debugfs") if _find(name) is None)


def make_drive(folder: Path, target: Path, size_mb: int) -> int:
    """Write ``target``: a file system of at least ``size_mb`` MB with what ``folder`` holds; returns the MB that it has.

    It grows with the content up to 512 MB. It is written beside and renamed, so ``target`` is whole or not there, and has
    mode 0600. Blocking: call it in a thread. Raises NovaError ``unsupported`` for what does not fit or cannot be in an image
    (a device, a socket), ``dependency_unavailable`` when a tool is missing or fails, ``storage_full``.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        image = Path(work) / "image"
        size = max(LEAST_MB, size_mb, _needed_mb(folder))
        if size > MOST_MB:
            text = f"code: it needs a drive of {size} MB, and a machine's code drive has at most {MOST_MB} MB"
            raise NovaError("unsupported", text)
        wanted = _entries(folder)
        _format(folder, image, size, len(wanted))
        _compare(image, wanted, Path(work) / "back")
        image.chmod(0o600)
        image.rename(target)
    return size


def _needed_mb(folder: Path) -> int:
    """An upper bound: whole blocks of every entry, an index block each, the inodes, and what the file system itself takes."""
    taken = sum((-(-place.lstat().st_size // _BLOCK) + 1) * _BLOCK + _INODE for place, _ in _walk(folder, ""))
    return -(-taken * 21 // 20 >> 20) + _SPARE_MB + 1


def _format(folder: Path, image: Path, size_mb: int, entries: int) -> None:
    inodes = str(entries + _SPARE_INODES)
    # no journal: nobody writes to it
    layout = ["-b", str(_BLOCK), "-I", str(_INODE), "-N", inodes, "-O", "^has_journal,^resize_inode"]
    owner = ["-E", "root_owner=0:0,lazy_itable_init=0,nodiscard"]
    with _disk_full():
        _run(["mkfs.ext4", "-F", "-q", "-m0", *layout, *owner, "-d", str(folder), str(image), f"{size_mb}M"])


def _compare(image: Path, wanted: dict[str, _Entry], back: Path) -> None:
    back.mkdir(mode=0o700)
    with _disk_full():
        _run(["debugfs", "-R", "rdump / .", str(image)], cwd=back)
    found = _entries(back)
    if _LOST not in wanted:
        found.pop(_LOST, None)
    if found != wanted:
        wrong = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
        raise NovaError("dependency_unavailable", f"the drive made by mkfs.ext4 has not what was put in: {wrong[0]!r}")


def _entries(folder: Path) -> dict[str, _Entry]:
    """By relative path, links not followed."""
    entries: dict[str, _Entry] = {}
    for place, path in _walk(folder, ""):
        mode = place.lstat().st_mode
        if stat.S_ISREG(mode):
            entries[path] = _Entry("file", _digest(place))
        elif stat.S_ISLNK(mode):
            entries[path] = _Entry("link", os.fsencode(os.readlink(place)))
        elif stat.S_ISDIR(mode):
            entries[path] = _Entry("directory", b"")
        else:
            raise NovaError("unsupported", f"code: {path!r} is neither a file nor a directory nor a link")
    return entries


def _walk(folder: Path, prefix: str) -> Iterator[tuple[Path, str]]:
    with os.scandir(folder) as found:
        inside = list(found)
    for entry in inside:
        path = prefix + entry.name
        yield Path(entry.path), path
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{path}/")


def _digest(path: Path) -> bytes:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").digest()


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _run(argv: list[str], cwd: Path | None = None) -> None:
    program = _find(argv[0])
    if program is None:
        raise NovaError("dependency_unavailable", f"{argv[0]} is not installed on this host (e2fsprogs)")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "MKE2FS_CONFIG": os.devnull}
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TOOL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NovaError("dependency_unavailable", f"{argv[0]} took longer than {_TOOL_S:g} s") from None
    if done.returncode != 0:
        said = next(iter(done.stderr.decode(errors="replace").strip().splitlines()[-1:]), str(done.returncode))
        raise NovaError("dependency_unavailable", f"{argv[0]} failed: {said}")


@contextlib.contextmanager
def _disk_full() -> Iterator[None]:
    try:
        yield
    except NovaError as error:
        if "No space left on device" in error.detail:
            raise storage_full("this node") from None
        raise
