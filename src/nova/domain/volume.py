"""Volumes: folders of a fixed size that outlive the instances that mount them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nova.errors import invalid

MAX_MOUNTS: Final = 8
"""Of one function."""
MIN_SIZE_MB: Final = 1
MAX_SIZE_MB: Final = 10240
MOUNT_PATH: Final = r"^/mnt/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"
"""Where a volume may be mounted: one folder below ``/mnt``."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume as a version of a function mounts it. ``shared``: several instances may write at once."""

    volume: str
    volume_id: str
    path: str
    read_only: bool = False
    shared: bool = False

    @property
    def exclusive(self) -> bool:
        """Does an instance have to be the only one that writes?"""
        return not self.read_only and not self.shared


def check_mounts(mounts: Sequence[Mount]) -> None:
    """Raises ``validation_failed`` when two share a path or a volume."""
    for number, mount in enumerate(mounts):
        before = mounts[:number]
        if any(other.path == mount.path for other in before):
            raise invalid(f"mounts.{number}.path", f"{mount.path} is there twice")
        if any(other.volume_id == mount.volume_id for other in before):
            raise invalid(f"mounts.{number}.volume", f"{mount.volume} is there twice")
