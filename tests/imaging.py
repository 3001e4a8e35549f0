"""Images for tests, built once for this user and kept between runs."""

import os
import time
from pathlib import Path

from nova.execution.images import Form, ImageFile, Images
from nova.execution.images.commands import missing
from nova.execution.images.kernel import Kernel, Kernels
from nova.execution.images.packing import remove
from nova.runtimes.registry import Runtimes

_KEPT = 2
_IN_USE_S = 3600
_PROGRAMS = {"tar": ("mmdebstrap",), "ext4": ("mmdebstrap", "mkfs.ext4")}


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nova-test-images"


def obstacle(form: Form) -> str:
    """Why this host cannot build an image of that form; empty when it can."""
    packages = missing(*_PROGRAMS[form])
    return f"not installed: {', '.join(packages)}" if packages else ""


def images() -> Images:
    return Images(cache(), Runtimes())


def image(runtime: str, form: Form) -> ImageFile:
    """Of ``python``, ``node``, ``custom``, ``provided``, or ``base``. The first one of a machine takes half a minute, the
    first one after a change of the agent a few seconds."""
    built = images().build_now(runtime, form, lambda _step: None)
    os.utime(built.path.parent)
    _forget(built.runtime)
    return built


def _forget(runtime: str) -> None:
    """Each change of the agent makes another image: the newest are kept, and those that a test run may be using."""
    folders = sorted(cache().glob(f"{runtime}-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        if folder.stat().st_mtime < time.time() - _IN_USE_S:
            remove(folder)


def kernel() -> Kernel:
    """For machines. The first one of a machine takes half a minute."""
    return Kernels(cache() / "kernel").build(lambda _step: None)
