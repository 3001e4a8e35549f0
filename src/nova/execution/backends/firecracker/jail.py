"""The jail of one machine: the folder that its process sees as the whole file system, and how the process gets there.

The jailer makes the chroot, joins the network namespace, becomes an unprivileged user of this machine alone and then is
Firecracker, which cannot come back: not to the host's files, processes or interfaces.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nova.execution.backends.sandbox import kernel

API_SOCKET: Final = "api.sock"
VSOCK: Final = "vsock.sock"
_OPEN_FILES: Final = 2048
_ID: Final = re.compile(r"[0-9a-zA-Z-]{1,64}")


@dataclass(frozen=True, slots=True)
class Programs:
    """Absolute paths."""

    firecracker: Path
    jailer: Path


@dataclass(frozen=True, slots=True)
class Jail:
    """``name`` is the machine's name for the jailer; ``base`` is where all jails are."""

    base: Path
    name: str
    programs: Programs
    uid: int
    gid: int

    @property
    def folder(self) -> Path:
        """What is removed at the end. The jailer wants it so: below ``base`` by the program's name."""
        return self.base / self.programs.firecracker.name / self.name

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def make(self) -> None:
        """The empty folder, open to the machine's user. Raises OSError."""
        if not _ID.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a name for a jail")
        self.base.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, parents=True)
        os.chown(self.root, self.uid, self.gid)

    def share(self, source: Path, name: str) -> None:
        """Make a file that other machines use as well visible, for reading: linked, or mounted where it is on another file
        system. Raises OSError."""
        target = self.root / name
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            target.touch()
            kernel.mount(str(source), str(target), None, kernel.MS_BIND)
            kernel.mount(str(source), str(target), None, kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY)

    def lend(self, name: str) -> None:
        """A file that we made becomes readable, and no more than that, for this machine's user."""
        os.chown(self.root / name, 0, self.gid)
        (self.root / name).chmod(0o440)

    def argv(self, namespace: str) -> list[str]:
        """No secret is in it; ``namespace`` is the path of the network namespace to join."""
        return [
            str(self.programs.jailer),
            *("--id", self.name),
            *("--exec-file", str(self.programs.firecracker)),
            *("--uid", str(self.uid)),
            *("--gid", str(self.gid)),
            *("--chroot-base-dir", str(self.base)),
            *("--netns", namespace),
            *("--resource-limit", f"no-file={_OPEN_FILES}"),
            "--",
            *("--api-sock", f"/{API_SOCKET}"),
        ]

    def remove(self) -> None:
        """Idempotent."""
        remove_jail(self.folder)


def remove_jail(folder: Path) -> None:
    """With what is mounted in it. Nothing happens when it is not there."""
    beneath = f"{folder.resolve()}/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if (point := line.split(" ")[4]).startswith(beneath):
            kernel.umount(point)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def distrust(folder: Path) -> str:
    """Why root should make nothing in ``folder``: another user could change what is there. Empty when none could."""
    for place in (folder, *folder.parents):
        try:
            found = place.lstat()
        except FileNotFoundError:
            continue
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if found.st_uid != os.geteuid() or shared or not stat.S_ISDIR(found.st_mode):
            return (
                f"{place} belongs to somebody else or others may write there; firecracker.socket_dir must be root's own"
            )
    return ""
