"""What machines of a backend can be held to on this host, and what is refused by name where they cannot."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nova.errors import NovaError
from nova.execution.backends.base import Enforced, InstanceSpec
from nova.execution.backends.vm import shape


@dataclass(frozen=True, slots=True)
class Abilities:
    """``reason``: why there are no machines here; empty when there are. ``cpu``: control groups hold them. ``network``: they may
    have one, and it is filtered; ``net_io``: and held to a bandwidth. ``disk_io``: their drives are."""

    backend: str
    reason: str
    cpu: bool
    network: bool
    net_io: bool
    disk_io: bool = False

    def unavailable(self, runtimes: Collection[str]) -> str:
        """Why nothing can be made here, ``runtimes`` being those that have an image."""
        return self.reason or ("" if runtimes else "no runtime has an image; nova runtime build python makes one")

    def enforces(self) -> Mapping[str, Enforced]:
        return {
            "memory": "hard",
            "cpu": _hard(self.cpu),
            "pids": "hard",
            "disk": "hard",
            "network_rules": _hard(self.network),
            "net_io": _hard(self.net_io),
            "disk_io": _hard(self.disk_io),
            "read_only_root": "hard",
            "user": "hard",
            "seccomp": "no",
        }

    def refuse(self, spec: InstanceSpec) -> None:
        """Raises NovaError ``unsupported``, naming the field."""
        if self.reason:
            raise NovaError("unsupported", f"the {self.backend} backend does not work on this host: {self.reason}")
        if not spec.network.offline and not self.network:
            text = (
                f"the {self.backend} backend cannot filter the network on this host; strict without rules is possible"
            )
            raise NovaError("unsupported", f"network_policy.isolation_mode {spec.network.isolation_mode}: {text}")
        if spec.limits.net_mbps and not self.net_io:
            text = f"the {self.backend} backend cannot limit bandwidth on this host"
            raise NovaError("unsupported", f"limits.net_mbps: {text}")
        if spec.mounts:
            raise NovaError("unsupported", "mounts: a machine shares no folder with the host, so it has no volumes")
        if len(spec.layers) > shape.LAYERS_MOST:
            raise NovaError("unsupported", f"layers: a machine has at most {shape.LAYERS_MOST} drives for them")
        if spec.limits.vcpus and not self.cpu:
            raise NovaError("unsupported", "limits.vcpus: this host has no control groups to limit CPU time with")


def _hard(holds: bool) -> Enforced:
    return "hard" if holds else "no"
