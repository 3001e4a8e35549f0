"""Where a host path is seen inside an isolated place: where it is, unless the place has something of its own there."""

from dataclasses import replace
from pathlib import Path

from nova.agent.config import WorkerLaunch

_OWN = ("/tmp", "/var/tmp", "/dev", "/proc", "/run", "/code", "/cache", "/scratch")
_ELSEWHERE = "/opt/host"


def inside(path: Path | str) -> str:
    """The path as processes inside know it: a checkout under ``/tmp`` would be hidden by the instance's own ``/tmp``."""
    text = str(path)
    covered = any(text == own or text.startswith(f"{own}/") for own in _OWN)
    return _ELSEWHERE + text if covered else text


def launch_inside(launch: WorkerLaunch) -> WorkerLaunch:
    """The same launch in terms of paths inside."""
    return replace(
        launch, argv=tuple(inside(word) for word in launch.argv), script=tuple(inside(word) for word in launch.script)
    )
