"""From a folder to one file: a tar for container engines, an ext4 file system for machines. Nothing is mounted."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Final

from nova.execution.images.commands import as_root, run

_BLOCK: Final = 4096
_SPARE: Final = 1.05
_SPARE_BYTES: Final = 8 << 20
_SPARE_INODES: Final = 64
_TOOL_S: Final = 300.0


def pack_tar(folder: Path, target: Path) -> None:
    """Sorted, of one time and one owner: the same folder makes the same bytes."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 0
        return entry

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=plain)


def pack_ext4(folder: Path, target: Path, label: str) -> None:
    """Without a journal and without room to write: it is only ever mounted read-only. Holes of the file take no space."""
    size, entries = _measure(folder)
    layout = ["-b", str(_BLOCK), "-N", str(entries + _SPARE_INODES), "-O", "^has_journal,^resize_inode,^metadata_csum"]
    options = ["-E", "root_owner=0:0,lazy_itable_init=0,nodiscard", "-L", label[:16]]
    blocks = str(size // _BLOCK)
    run(
        *as_root("mkfs.ext4", "-F", "-q", "-m0", *layout, *options, "-d", str(folder), str(target), blocks),
        timeout_s=_TOOL_S,
    )


def _measure(folder: Path) -> tuple[int, int]:
    """Bytes that a file system needs for a folder, and how many files and folders it has."""
    size, entries = 0, 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entries += 1
            size += (-(-os.lstat(os.path.join(place, name)).st_size // _BLOCK) + 1) * _BLOCK
    taken = int(size * _SPARE) + entries * 256 + _SPARE_BYTES
    return taken, entries


def remove(folder: Path) -> None:
    """Also when folders in it are not writable."""
    if not folder.exists():
        return
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755)
    shutil.rmtree(folder)
