"""Artifacts on this node: the tree of each digest unpacked once, read-only, shared by all instances that mount it."""

import asyncio
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.store.blobs import BlobStore

log = structlog.get_logger(__name__)
_GRACE_S = 120
"""What was asked for so recently may be about to be mounted."""
_TMP = ".tmp-"


class Artifacts:
    """``root/<hex>`` per artifact. ``in_use`` names the digests that instances have mounted: those are never removed."""

    def __init__(
        self,
        blobs: BlobStore,
        root: Path,
        *,
        max_bytes: int,
        in_use: Callable[[], Collection[str]] = tuple,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._blobs = blobs
        self._root = root
        self._max_bytes = max_bytes
        self._in_use = in_use
        self._clock = clock
        self._sizes: dict[str, int] = {}
        self._used: dict[str, float] = {}
        self._under_way: dict[str, asyncio.Task[Path]] = {}

    async def start(self) -> None:
        """Find what is there from before; remove what a killed process left half done."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self._survey)

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def materialise(self, digest: str) -> Path:
        """The folder with the artifact's tree, made now if it is not there; whoever asks meanwhile waits for the same.

        Raises ``not_found`` when no such artifact is stored.
        """
        self._used[digest] = self._clock.monotonic()
        if digest in self._sizes:
            return self._folder(digest)
        task = self._under_way.get(digest)
        if task is None:
            task = asyncio.create_task(self._make(digest), name=f"artifact.{digest}")
            self._under_way[digest] = task
            task.add_done_callback(lambda _task: self._under_way.pop(digest))
        # one caller's cancellation must not take the artifact from the others
        return await asyncio.shield(task)

    def _folder(self, digest: str) -> Path:
        return self._root / digest.removeprefix("sha256:")

    async def _make(self, digest: str) -> Path:
        hasher = hashlib.sha256()
        with tempfile.TemporaryFile(dir=self._root) as file:
            async for piece in self._blobs.stream(digest):
                hasher.update(piece)
                file.write(piece)
            if (found := f"sha256:{hasher.hexdigest()}") != digest:
                raise OSError(f"the stored artifact {digest} has the digest {found}")
            file.seek(0)
            size = await asyncio.to_thread(self._unpack, file, self._folder(digest))
        self._sizes[digest] = size
        await self._make_room()
        return self._folder(digest)

    def _unpack(self, file: BinaryIO, folder: Path) -> int:
        made = Path(tempfile.mkdtemp(dir=self._root, prefix=_TMP))
        try:
            size = unpack(file, made)
            made.rename(folder)
        except BaseException:
            remove(made)
            raise
        return size

    async def _make_room(self) -> None:
        """Remove the least recently used above the limit, but nothing that is mounted or about to be."""
        total = sum(self._sizes.values())
        if total <= self._max_bytes:
            return
        mounted, now = set(self._in_use()), self._clock.monotonic()
        for digest in sorted(self._sizes, key=lambda digest: self._used.get(digest, 0)):
            recent = digest in self._used and now - self._used[digest] < _GRACE_S
            if digest in mounted or recent:
                continue
            total -= self._sizes.pop(digest)
            self._used.pop(digest, None)
            grave = self._root / f"{_TMP}{self._folder(digest).name}"
            self._folder(digest).rename(grave)
            await asyncio.to_thread(remove, grave)
            log.info("artifact removed from this node", digest=digest)
            if total <= self._max_bytes:
                return

    def _survey(self) -> None:
        for item in self._root.iterdir():
            if item.name.startswith(_TMP):
                remove(item)
            else:
                self._sizes[f"sha256:{item.name}"] = _size(item)


def unpack(file: BinaryIO, folder: Path) -> int:
    """Unpack an archive of ours below ``folder`` with read-only modes; the bytes of its files.

    Every member lies in a folder that the archive has made before: nothing is written through a link. Raises OSError.
    """
    top = str(folder)
    folders = {"": top}
    total = 0
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            parent, _, name = member.name.rpartition("/")
            if parent not in folders or name in ("", ".", ".."):
                raise OSError(f"the artifact's member {member.name!r} is out of place")
            target = f"{folders[parent]}/{name}"
            if member.isdir():
                os.mkdir(target)
                folders[member.name] = target
            elif member.issym():
                os.symlink(member.linkname, target)
            else:
                _write(tar, member, target)
                total += member.size
    for made in reversed(folders.values()):
        os.chmod(made, 0o555)
    return total


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    content = tar.extractfile(member)
    if content is None:
        raise OSError(f"the artifact's member {member.name!r} is no file")
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as out:
        shutil.copyfileobj(content, out, 1 << 20)
        os.fchmod(descriptor, 0o555 if member.mode & 0o111 else 0o444)


def remove(path: Path) -> None:
    """Remove a tree though its folders are read-only."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for where, _folders, _files in os.walk(path):
        if not os.lstat(where).st_mode & stat.S_IWUSR:
            os.chmod(where, 0o700)
    shutil.rmtree(path)


def _size(folder: Path) -> int:
    return sum(os.lstat(os.path.join(where, name)).st_size for where, _, names in os.walk(folder) for name in names)
