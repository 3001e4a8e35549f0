"""Layers: folders of files that many functions mount, published once as numbered versions that never change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nova.domain.names import is_name
from nova.domain.tree import MIB
from nova.errors import NovaError, invalid

MAX_LAYERS: Final = 6
"""Of one function."""
MAX_LAYERS_BYTES: Final = 512 * MIB
"""Of all files in the layers of one function."""


@dataclass(frozen=True, slots=True)
class LayerRef:
    """One version of a layer, as a version of a function mounts it. ``artifact`` is the digest of its tree, ``size`` the
    bytes of its files; ``runtimes`` empty: for every runtime."""

    name: str
    version: int
    artifact: str
    size: int
    runtimes: tuple[str, ...] = ()


def parse_reference(text: str, field: str) -> tuple[str, int | None]:
    """``name`` (None: the newest version) or ``name@3``. Raises ``validation_failed``."""
    name, separator, number = text.partition("@")
    numbered = number.isascii() and number.isdigit() and 1 <= len(number) <= 9
    if not is_name(name) or (separator and not numbered):
        raise invalid(field, f"{text[:80]!r} is neither the name of a layer nor name@version")
    return name, int(number) if separator else None


def check_layers(layers: Sequence[LayerRef], runtime: str) -> None:
    """May a function of this runtime mount these? Raises ``validation_failed`` or ``payload_too_large``."""
    names = [layer.name for layer in layers]
    for number, layer in enumerate(layers):
        if layer.name in names[:number]:
            raise invalid(f"layers.{number}", f"{layer.name} is there twice")
        if layer.runtimes and runtime not in layer.runtimes:
            offered = ", ".join(layer.runtimes)
            raise invalid(f"layers.{number}", f"{layer.name}@{layer.version} is for {offered}, not for {runtime}")
    total = sum(layer.size for layer in layers)
    if total > MAX_LAYERS_BYTES:
        detail = f"layers: {total} bytes together, at most {MAX_LAYERS_BYTES // MIB} MiB"
        raise NovaError("payload_too_large", detail, extra={"limit": MAX_LAYERS_BYTES})
