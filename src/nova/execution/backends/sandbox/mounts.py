"""The file system of an instance: a read-only root built once per kind of instance, a private ``/tmp`` and ``/proc``.

The launcher builds each root in its own mount namespace. A child, in a copy of that namespace, makes it its ``/`` and
drops everything else. Guest-side code: standard library only.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from nova.execution.backends.sandbox import calls, kernel
from nova.execution.backends.sandbox.calls import Call

BindKind = str
"""``ro``: read-only, no devices. ``rw``: writable, no devices. ``dev``: a device node."""

_ATTRIBUTES = {
    "ro": kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV,
    "rw": kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV,
    "dev": kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC,
}

_HIDDEN_IN_PROC = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "kallsyms", "sysrq-trigger", "kmsg")

_NOISY_MOUNTS = (
    "/var/lib/docker/",
    "/var/lib/containers/",
    "/var/lib/containerd/",
    "/var/lib/kubelet/",
    "/run/containerd/",
    "/run/docker/",
    "/run/netns",
    "/run/user/",
    "/snap/",
)


@dataclass(frozen=True, slots=True)
class RootPlan:
    """What a root holds, as data that travels to the launcher. Paths inside are absolute; parents are made as needed."""

    name: str
    directories: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """(path inside, what it points to)"""
    files: tuple[tuple[str, str], ...] = ()
    """(path inside, text)"""
    binds: tuple[tuple[str, str, BindKind], ...] = field(default=())
    """(path on the host, path inside, kind)"""

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "directories": list(self.directories),
            "links": [list(item) for item in self.links],
            "files": [list(item) for item in self.files],
            "binds": [list(item) for item in self.binds],
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        return cls(
            name=data["name"],
            directories=tuple(data["directories"]),
            links=tuple((path, target) for path, target in data["links"]),
            files=tuple((path, text) for path, text in data["files"]),
            binds=tuple((source, target, kind) for source, target, kind in data["binds"]),
        )


def private_namespace() -> None:
    """Give the launcher mounts of its own, and fewer of them: each child's copy costs time per mount.

    Mounts that the host adds or removes later still arrive here; nothing goes back.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
    with open("/proc/self/mountinfo") as file:
        points = [line.split(" ")[4] for line in file]
    for point in reversed(points):
        if (point + "/").startswith(_NOISY_MOUNTS):
            # One that cannot go (an ordinary user's inherited mounts are locked) costs time only.
            try:
                kernel.umount(point)
            except OSError:
                continue


def build_root(plan: RootPlan, at: str) -> None:
    """Build ``plan`` on a fresh tmpfs mounted at ``at``, which must not exist, and seal it read-only."""
    os.mkdir(at)
    try:
        _fill_root(plan, at)
    except OSError:
        drop_root(at)
        raise


def _fill_root(plan: RootPlan, at: str) -> None:
    kernel.mount("tmpfs", at, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=4m,nr_inodes=4096")
    kernel.mount("none", at, None, kernel.MS_PRIVATE)
    for path in plan.directories:
        os.makedirs(at + path, exist_ok=True)
    for path, target in plan.links:
        os.makedirs(os.path.dirname(at + path), exist_ok=True)
        os.symlink(target, at + path)
    for path, text in plan.files:
        os.makedirs(os.path.dirname(at + path), exist_ok=True)
        with open(at + path, "w") as file:
            file.write(text)
    for source, target, kind in plan.binds:
        _bind(source, at + target, kind)
    seal = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    kernel.mount_setattr(-100, at, seal)


def drop_root(at: str) -> None:
    """Undo :func:`build_root`."""
    kernel.umount(at)
    os.rmdir(at)


def _bind(source: str, target: str, kind: BindKind) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))
    attach(source, target, kind)


def detached(source: str, kind: BindKind) -> int:
    """A copy of the mount at ``source`` with its restrictions, not attached anywhere yet."""
    tree = kernel.open_tree(source, recursive=True)
    try:
        kernel.mount_setattr(tree, "", _ATTRIBUTES[kind], recursive=True, propagation=kernel.MS_PRIVATE)
    except BaseException:
        os.close(tree)
        raise
    return tree


def attach(source: str, target: str, kind: BindKind) -> None:
    """Make ``source`` visible at ``target``, both in the caller's mount namespace."""
    tree = detached(source, kind)
    try:
        kernel.move_mount(tree, target)
    finally:
        os.close(tree)


def entering(root: str, tmp_bytes: int) -> list[Call]:
    """In a child's own mount and pid namespaces: make ``root`` the whole world, with its own /proc and /tmp."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    hidden = [name for name in _HIDDEN_IN_PROC if os.path.exists(f"/proc/{name}")]
    return [
        # The inherited mount is locked in place; a bind of it is not, and pivot_root wants one that can move.
        calls.mount(root, root, None, kernel.MS_BIND | kernel.MS_REC),
        calls.chdir(root),
        calls.mount("proc", "proc", "proc", flags | kernel.MS_NOEXEC, "hidepid=invisible"),
        calls.mount("tmpfs", "tmp", "tmpfs", flags, f"mode=1777,uid=65534,gid=65534,{tmp_size(tmp_bytes)}"),
        *(calls.mount("dev/null", f"proc/{name}", None, kernel.MS_BIND) for name in hidden),
        *calls.pivot_root_here(),
    ]


def tmp_size(size: int) -> str:
    """Mount options of a ``/tmp`` that holds ``size`` bytes and one file per KiB."""
    return f"size={size},nr_inodes={max(1024, size // 1024)}"


@dataclass(frozen=True, slots=True)
class Volume:
    """``tree`` is a detached mount of a volume (descriptor), not shown to anyone yet."""

    tree: int
    target: str
    read_only: bool


def attach_volumes(namespace: int, own_namespace: int, users: int, volumes: Sequence[Volume]) -> None:
    """Mount volumes inside a running instance, below a ``/mnt`` that holds nothing else.

    ``users`` is its user namespace: files belong to the same user inside whatever instance looks at them.
    """
    for volume in volumes:
        attributes = _ATTRIBUTES["ro" if volume.read_only else "rw"] | kernel.MOUNT_ATTR_IDMAP
        kernel.mount_setattr(volume.tree, "", attributes, propagation=kernel.MS_PRIVATE, users=users)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.setns(namespace, kernel.CLONE_NEWNS)
    try:
        kernel.mount("tmpfs", "/mnt", "tmpfs", flags, "mode=755,size=64k,nr_inodes=64")
        for volume in volumes:
            os.mkdir(volume.target, 0o755)
            kernel.move_mount(volume.tree, volume.target)
        kernel.mount("none", "/mnt", None, flags | kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
    finally:
        kernel.setns(own_namespace, kernel.CLONE_NEWNS)


def attach_inside(namespace: int, own_namespace: int, binds: Iterable[tuple[str, str]], tmp_bytes: int | None) -> None:
    """Mount host directories read-only inside a running instance, whose mount namespace is ``namespace``.

    ``binds`` are (host path, path inside). Its /tmp is resized when ``tmp_bytes`` is given. The caller visits that
    namespace and comes back to ``own_namespace``; nothing remains on the host's side, the mounts die with the instance.
    """
    trees = [(detached(source, "ro"), target) for source, target in binds]
    try:
        kernel.setns(namespace, kernel.CLONE_NEWNS)
        try:
            for tree, target in trees:
                kernel.move_mount(tree, target)
            if tmp_bytes is not None:
                flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_REMOUNT
                kernel.mount("tmpfs", "/tmp", "tmpfs", flags, tmp_size(tmp_bytes))
        finally:
            kernel.setns(own_namespace, kernel.CLONE_NEWNS)
    finally:
        for tree, _ in trees:
            os.close(tree)
