"""What a function asks of the place it runs in."""

from dataclasses import dataclass

from nova.domain.function import FunctionSnapshot, Limits, NetworkPolicy


@dataclass(frozen=True, slots=True)
class Needs:
    """``network`` None stands for what a function without a policy gets there. ``layers`` and ``volumes``: it mounts some."""

    runtime: str
    limits: Limits
    network: NetworkPolicy | None = None
    layers: bool = False
    volumes: bool = False

    @classmethod
    def of(cls, snapshot: FunctionSnapshot) -> "Needs":
        layers, volumes = bool(snapshot.layers), bool(snapshot.mounts)
        return cls(snapshot.runtime, snapshot.limits, snapshot.network, layers, volumes)
