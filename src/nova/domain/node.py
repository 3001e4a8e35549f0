"""A process of the platform as the others see it."""

from dataclasses import dataclass, field
from typing import Literal

NodeState = Literal["active", "cordoned", "draining"]
"""cordoned: gets no new instances or calls; draining: the same, and it will go when its calls are done."""

LEASE_S = 15.0
"""A node that has not renewed its row for this long is gone."""
RENEW_S = 5.0
SILENT_S = 3.0
"""A comet whose live report stays out for this long gets no calls until it speaks again."""


@dataclass(frozen=True, slots=True)
class WarmPool:
    """Instances of one function version on a node, and how many of their slots are free."""

    tenant: str
    namespace: str
    function: str
    version: int
    instances: int
    free: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a comet says of itself about once a second. ``address`` is host:port that other processes can dial."""

    node_id: str
    name: str
    address: str
    state: NodeState = "active"
    cpu_cores: float = 0.0
    cpu_used: float = 0.0
    """cores busy since the last report"""
    memory_mb: int = 0
    memory_used_mb: int = 0
    max_instances: int = 0
    instances: int = 0
    inflight: int = 0
    queued: int = 0
    warm: tuple[WarmPool, ...] = ()
    backends: tuple[str, ...] = ()
    arch: str = ""
    version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
