"""Where on this host control groups can be made: found out by the daemon, used by the launcher.

Guest-side code: standard library only.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova.execution.backends.sandbox.cgroups import CONTROLLERS, Groups, GroupsV1, GroupsV2, NoGroups

V1_CONTROLLERS = (*CONTROLLERS, "cpuacct")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where groups can be made on this host. ``version`` 0: nowhere, and ``reason`` says why."""

    version: int
    reason: str = ""
    mounts: tuple[tuple[str, str], ...] = ()
    """version 1: (controller, its mount point); version 2: one entry, ("", folder to make groups in)"""

    def as_dict(self) -> dict[str, Any]:
        return {"version": self.version, "reason": self.reason, "mounts": [list(item) for item in self.mounts]}

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Layout":
        return cls(data["version"], data["reason"], tuple((name, path) for name, path in data["mounts"]))

    def open(self, node: str) -> Groups:
        if self.version == 1:
            return GroupsV1(dict(self.mounts), node)
        if self.version == 2:
            return GroupsV2(self.mounts[0][1], node)
        return NoGroups()


def find_layout(mountinfo: str, membership: str, root: str = "") -> Layout:
    """Decide from the text of ``/proc/self/mountinfo`` and ``/proc/self/cgroup`` where this process may make groups.

    ``root`` names a group below the top of the hierarchies. Without it: version 1, when it has the controllers, at the
    top of each hierarchy, so that a restarted daemon finds what it left; version 2 in the own group when the service
    manager delegated it, else (as root) at the top.
    """
    v1: dict[str, str] = {}
    v2: str | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point, (fstype, _, options) = before.split(" ")[4], after.split(" ")[:3]
        if fstype == "cgroup":
            below = os.path.join(point, root.strip("/")) if root else point
            v1.update({name: below for name in options.split(",") if name in V1_CONTROLLERS})
        elif fstype == "cgroup2":
            v2 = point
    if all(name in v1 for name in CONTROLLERS):
        if not all(os.access(v1[name], os.W_OK) for name in CONTROLLERS):
            return Layout(0, "the control groups (version 1) of this host are not writable for this user")
        return Layout(1, "", tuple((name, v1[name]) for name in V1_CONTROLLERS if name in v1))
    if v2 is None:
        return Layout(0, "no control groups are mounted")
    return _find_v2(Path(v2), membership, root)


def _find_v2(top: Path, membership: str, root: str) -> Layout:
    own_path = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), "/")
    own = top / (root or own_path).lstrip("/")
    if os.access(own / "cgroup.subtree_control", os.W_OK) and (root or _delegated(own)):
        folder = own
    elif root:
        return Layout(0, f"the control group {own} is not there or not writable for this user")
    elif os.access(top / "cgroup.subtree_control", os.W_OK):
        folder = top
    else:
        return Layout(0, "no control group is delegated to this user (systemd: Delegate=yes)")
    available = (folder / "cgroup.controllers").read_text().split()
    missing = [name for name in CONTROLLERS if name not in available]
    if missing:
        return Layout(0, f"the controllers {', '.join(missing)} are not available in {folder}")
    return Layout(2, "", (("", str(folder)),))


def _delegated(folder: Path) -> bool:
    try:
        return os.getxattr(folder, "user.delegate") == b"1"
    except OSError:
        return False


def detect_layout(root: str = "") -> Layout:
    """:func:`find_layout` for this process."""
    return find_layout(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text(), root)
