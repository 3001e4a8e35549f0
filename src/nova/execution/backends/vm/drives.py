"""The drives of one machine beside its root: the function's code, and a drive for each layer."""

import os
import tempfile
from pathlib import Path
from typing import Final

from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.vm.codedrive import MOST_MB, make_drive

CODE: Final = "code.ext4"


def layer_file(number: int) -> str:
    return f"layer{number}.ext4"


def own_drives(spec: InstanceSpec) -> list[str]:
    """The names of their files, in the order in which a machine has them."""
    return [CODE, *(layer_file(number) for number, _ in enumerate(spec.layers))]


def make_drives(folder: Path, spec: InstanceSpec, code_mb: int, *, extended: bool = False) -> list[Path]:
    """Write them into ``folder``. ``code_mb``: least size of the code's. ``extended``: each looks as large as any may be, as a
    machine that comes from a template has learnt the size of its drives before. Blocking; raises as :func:`make_drive`."""
    found = [folder / name for name in own_drives(spec)]
    with tempfile.TemporaryDirectory() as empty:
        make_drive(spec.code or Path(empty), found[0], code_mb if spec.code else 0)
    for layer, target in zip(spec.layers, found[1:], strict=True):
        make_drive(layer.path, target, 0)
    if extended:
        for target in found:
            os.truncate(target, MOST_MB << 20)
    return found


def make_blank_drives(folder: Path, spec: InstanceSpec) -> list[Path]:
    """Those of a template: nothing is in them, and they take no room on the disk. Raises OSError."""
    found = [folder / name for name in own_drives(spec)]
    for target in found:
        target.touch(mode=0o600)
        os.truncate(target, MOST_MB << 20)
    return found
