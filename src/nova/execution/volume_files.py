"""The files of volumes on this node: each an image with a file system of its own, so that its size is a hard limit.

An image is sparse: it takes the room of what is in it. Inside, everything belongs to the user of workers (65534), whatever
user an instance has outside.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from nova.errors import NovaError

log = structlog.get_logger(__name__)

GUEST_UID: Final = 65534
_TOOLS: Final = ("mkfs.ext4", "e2fsck", "resize2fs", "losetup", "mount", "umount")
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_TOOL_S: Final = 60.0
_FREED_S: Final = 1.0
"""So long an instance that has just been ended may still keep a volume from growing."""
_IMAGE, _FILES, _LOCK = "image", "files", "lock"


def obstacle() -> str:
    """Why this host can hold no volumes; empty when it can."""
    if os.geteuid() != 0:
        return "volumes need a daemon that runs as root: their size is that of a mounted file system"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"volumes need {', '.join(missing)} (packages e2fsprogs and mount)"
    if not os.path.exists("/dev/loop-control"):
        return "volumes need loop devices: there is no /dev/loop-control"
    return ""


class VolumeFiles:
    """``folder`` may be shared by several processes of one host, and by no other host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def belong_to(self, installation: str) -> None:
        """Work on the volumes of this installation from now on: others' may lie in the same folder, and are not ours to
        remove."""
        self._folder = self._folder / installation

    def has(self, volume_id: str) -> bool:
        return (self._folder / volume_id / _IMAGE).exists()

    def ids(self) -> list[str]:
        """Of the volumes that have files here."""
        return [item.parent.name for item in self._folder.glob(f"*/{_LOCK}")]

    async def mounted(self, volume_id: str, size_mb: int) -> Path:
        """The folder with a volume's files, made now if there are none, at least ``size_mb`` MiB large.

        Raises NovaError ``unsupported`` when the host cannot, ``storage_full`` and the like as OSError.
        """
        if reason := obstacle():
            raise NovaError("unsupported", f"mounts: {reason}")
        return await asyncio.to_thread(self._mounted, volume_id, size_mb << 20)

    def _mounted(self, volume_id: str, size: int) -> Path:
        home = self._folder / volume_id
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        image, files = home / _IMAGE, home / _FILES
        with _locked(home):
            if not image.exists():
                _make(image, size)
            files.mkdir(
                mode=0o000, exist_ok=True
            )  # where the mount does not show, nobody writes to the host's own disk
            if image.stat().st_size < size:
                _grow(image, files, size)
            if not os.path.ismount(files):
                _run("mount", "-t", "ext4", "-o", "loop,nosuid,nodev", str(image), str(files))
                with contextlib.suppress(OSError):
                    (files / "lost+found").rmdir()
        return files

    def used(self, volume_id: str) -> int:
        """Bytes in use of a mounted volume; 0 when it is not."""
        files = self._folder / volume_id / _FILES
        if not os.path.ismount(files):
            return 0
        found = os.statvfs(files)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    async def remove(self, volume_id: str) -> None:
        """With everything in it."""
        await asyncio.to_thread(self._remove, volume_id)

    def _remove(self, volume_id: str) -> None:
        home = self._folder / volume_id
        with _locked(home):
            _unmount(home / _FILES)
            (home / _IMAGE).unlink(missing_ok=True)
        shutil.rmtree(home)
        log.info("the files of a deleted volume are gone", volume=volume_id)

    async def close(self) -> None:
        """Unmount what nobody uses. A process that still does mounts it again: the file system is the same one."""
        for volume_id in self.ids():
            await asyncio.to_thread(self._close, self._folder / volume_id)

    def _close(self, home: Path) -> None:
        with _locked(home):
            _unmount(home / _FILES)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process and thread at a time works on a volume's image."""
    descriptor = os.open(home / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(image: Path, size: int) -> None:
    """Under another name until it is whole."""
    fresh = image.with_suffix(".new")
    _truncate(fresh, size, os.O_CREAT | os.O_TRUNC)
    owner = f"root_owner={GUEST_UID}:{GUEST_UID}"
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", owner, str(fresh))
    fresh.rename(image)


def _grow(image: Path, files: Path, size: int) -> None:
    """While no instance has it: growing under one takes a right that a daemon in a container lacks. Else the next one that
    finds it free lets it grow."""
    if os.path.ismount(files):
        _run("umount", str(files))
    freed = Retrying(
        retry=retry_if_result(bool),
        stop=stop_after_delay(_FREED_S),
        wait=wait_fixed(0.05),
        retry_error_callback=lambda last: last.outcome.result() if last.outcome else "",
    )
    if freed(_run, "losetup", "-n", "-O", "NAME", "-j", str(image)).strip():
        log.info("a volume grows when no instance has it any more", volume=files.parent.name)
        return
    _truncate(image, size)
    _run("e2fsck", "-fp", str(image), good=(0, 1))
    _run("resize2fs", str(image))


def _truncate(path: Path, size: int, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _unmount(files: Path) -> None:
    if os.path.ismount(files):
        _run("umount", "-l", str(files))


def _run(*command: str, good: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_TOOL_S, check=False, env={"PATH": _PATH, "LC_ALL": "C"}
    )
    if done.returncode not in good:
        said = (done.stderr or done.stdout).strip() or f"it ended with {done.returncode}"
        raise OSError(f"{command[0]}: {said}")
    return done.stdout
