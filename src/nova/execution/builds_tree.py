"""From stored sources to a folder, and from a built folder to the deterministic archive that is mounted at ``/code``."""

import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from nova.domain.tree import HANDLER_LINK

_OPEN = 0o777
_OPEN_FILE = 0o666


class TreeRefused(Exception):
    """A built folder cannot become an artifact; the message says why."""


@dataclass(frozen=True, slots=True)
class Packed:
    """``size`` is the sum of the files in bytes."""

    files: int
    size: int


async def lay_out(folder: Path, pieces: AsyncIterator[tuple[str, int, int, bytes]]) -> None:
    """Write source files (path, mode, number of the piece, bytes) below ``folder``, writable by whoever builds there.

    The builder is another user on the host; the folder's parent keeps everybody else out.
    """
    folders = {folder}
    folder.chmod(_OPEN)
    async for path, mode, seq, data in pieces:
        target = folder / path
        for parent in reversed(target.relative_to(folder).parents[:-1]):
            if (made := folder / parent) not in folders:
                made.mkdir()
                made.chmod(_OPEN)
                folders.add(made)
        if stat.S_ISLNK(mode):
            target.symlink_to(data.decode())
        else:
            with target.open("xb" if seq == 0 else "ab") as file:
                file.write(data)
            target.chmod(mode | _OPEN_FILE)


def pack_folder(folder: Path, entry: str, out: BinaryIO, *, limit: int) -> Packed:
    """Write the archive of ``folder`` with its ``handler`` link: equal content gives equal bytes, whoever owns it.

    Raises :class:`TreeRefused` above ``limit`` bytes, and for devices, pipes, sockets and links that lead out.
    """
    files = size = 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, item in _walk(folder, PurePosixPath()):
            info = _member(folder, path, item)
            if not info.isreg():
                tar.addfile(info)
                continue
            files += 1
            size += info.size
            if size > limit:
                raise TreeRefused(f"code and dependencies together are over {limit >> 20} MiB")
            with open(item.path, "rb", opener=_no_follow) as file:
                tar.addfile(info, file)
        if not os.path.lexists(folder / HANDLER_LINK):
            tar.addfile(_info(HANDLER_LINK, tarfile.SYMTYPE, 0o777, target=entry))
    return Packed(files, size)


def disk_usage(folder: Path) -> int:
    """Bytes on disk below ``folder``; what vanishes while it is looked at does not count."""
    total = 0
    for where, _folders, names in os.walk(folder, onerror=None):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _walk(folder: Path, at: PurePosixPath) -> Iterator[tuple[PurePosixPath, "os.DirEntry[str]"]]:
    """Everything below, folders before what is in them, siblings by the bytes of their names."""
    with os.scandir(folder / at) as found:
        items = sorted(found, key=lambda item: os.fsencode(item.name))
    for item in items:
        yield at / item.name, item
        if item.is_dir(follow_symlinks=False):
            yield from _walk(folder, at / item.name)


def _member(folder: Path, path: PurePosixPath, item: "os.DirEntry[str]") -> tarfile.TarInfo:
    status = item.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return _info(str(path), tarfile.DIRTYPE, 0o755)
    if stat.S_ISREG(status.st_mode):
        mode = 0o755 if status.st_mode & 0o111 else 0o644
        return _info(str(path), tarfile.REGTYPE, mode, size=status.st_size)
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(item.path)
        inside = os.path.normpath(os.path.join(folder, path.parent, target))
        if os.path.isabs(target) or not Path(inside).is_relative_to(folder):
            raise TreeRefused(f"the link {str(path)!r} leads out of the code")
        return _info(str(path), tarfile.SYMTYPE, 0o777, target=target)
    raise TreeRefused(f"{str(path)!r} is neither a file nor a folder nor a link")


def _info(path: str, kind: bytes, mode: int, *, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """A header in which nothing depends on when, where or by whom it was made."""
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.size, info.linkname = kind, mode, size, target
    return info


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
