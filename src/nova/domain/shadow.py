"""Shadow traffic: copies of calls that run another version, whose answers are compared and thrown away."""

from dataclasses import dataclass
from typing import Literal

from nova.domain.alias import WHOLE

Compare = Literal["none", "status", "output"]
MAX_SAMPLES = 20
"""Differences that are kept, the newest."""
SHADOW_VARIABLE = "NOVA_SHADOW"
"""Set to ``1`` in the instances that run copies."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """``target`` is a version's number or an alias; ``weight`` the share of calls that is copied, in hundredths of a percent.

    ``ignore`` are JSON Pointers into outputs that are not compared. ``max_inflight`` bounds the copies that run at once in
    one process; a call that finds no place is not copied.
    """

    id: str
    target: str
    weight: int = WHOLE
    compare: Compare = "output"
    ignore: tuple[str, ...] = ()
    max_inflight: int = 10
