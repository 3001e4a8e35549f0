"""What the engine is told about one container: everything that isolates it, as a value."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nova.domain.function import Limits
from nova.execution.backends.docker.doorway import NAME
from nova.execution.backends.docker.groups import CPU_PERIOD_US, cpu_shares
from nova.execution.backends.docker.published import PORT, Published
from nova.execution.backends.sandbox.mounts import tmp_size
from nova.execution.backends.sandbox.namespaces import MAX_FILE_BYTES

LABEL_NODE: Final = "nova.node"
LABEL_INSTANCE: Final = "nova.instance"
DOOR: Final = "/run/nova"
ENTRY: Final = ("/usr/bin/python3", "-I", "-S", "/opt/nova/boot")
RELOAD_DIR: Final = "/run/reload"
_UID: Final = 65534
_SHM_BYTES: Final = 16 << 20
_LOG: Final = {"Type": "json-file", "Config": {"max-size": "64k", "max-file": "1"}}
"""Prints of functions travel through pipes of their own; what remains are last words of an agent that did not start."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path seen at ``target``."""

    source: Path
    target: str
    read_only: bool = True

    def mount(self) -> dict[str, Any]:
        """For the engine, in the form with which it makes no folder in the place of a source that is gone: a killed daemon's
        container may be about to start while its successor clears away what it needed."""
        return {"Type": "bind", "Source": str(self.source), "Target": self.target, "ReadOnly": self.read_only}


@dataclass(frozen=True, slots=True)
class Plan:
    """One container. ``token_sha256`` is all that goes inside of the token that opens its agent; ``door`` is the folder with
    the socket that the agent connects to."""

    name: str
    node: str
    image: str
    token_sha256: str
    door: Path | None
    resolv_conf: Path
    limits: Limits
    seccomp: str
    binds: Sequence[Bind] = ()
    published: Published | None = None
    """instead of ``door``: the agent listens on a port"""

    @property
    def container_name(self) -> str:
        return f"nova-{self.node}-{self.name}"

    def configuration(self) -> dict[str, Any]:
        """The body of ``POST /containers/create``."""
        listen = f"connect:{DOOR}/{NAME}" if self.door is not None else f"tcp:{PORT}"
        return {
            "Image": self.image,
            "Entrypoint": list(ENTRY),
            "Cmd": [],
            "User": f"{_UID}:{_UID}",
            "WorkingDir": "/",
            "Hostname": "nova",
            "Env": [
                f"NOVA_AGENT_LISTEN={listen}",
                f"NOVA_AGENT_TOKEN_SHA256={self.token_sha256}",
                f"NOVA_INSTANCE_ID={self.name}",
                f"NOVA_AGENT_RELOAD_DIR={RELOAD_DIR}",
            ],
            "Labels": {LABEL_NODE: self.node, LABEL_INSTANCE: self.name},
            **({"ExposedPorts": {f"{PORT}/tcp": {}}} if self.published is not None else {}),
            "HostConfig": self._host(),
        }

    def _host(self) -> dict[str, Any]:
        limits = self.limits
        doors = [Bind(self.door, DOOR)] if self.door is not None else []
        binds = [*doors, Bind(self.resolv_conf, "/etc/resolv.conf"), *self.binds]
        return {
            "Mounts": [bind.mount() for bind in binds],
            # A network comes later, from the host, with its rules in force; or never.
            **(self.published.ports() if self.published is not None else {"NetworkMode": "none"}),
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/tmp": f"rw,nosuid,nodev,exec,mode=1777,{tmp_size(limits.tmp_mb << 20)}",
                # Like all that is written here it counts as memory, so it needs no limit of its own.
                RELOAD_DIR: f"rw,nosuid,nodev,exec,mode=755,uid={_UID},gid={_UID},{tmp_size(limits.memory_mb << 20)}",
            },
            "ShmSize": _SHM_BYTES,
            "IpcMode": "private",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={self.seccomp}"],
            "Privileged": False,
            "Memory": limits.memory_mb << 20,
            "MemorySwap": limits.memory_mb << 20,
            "CpuPeriod": CPU_PERIOD_US,
            "CpuQuota": int(limits.cpu_ceiling * CPU_PERIOD_US),
            "CpuShares": cpu_shares(limits),
            "PidsLimit": limits.pids,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": MAX_FILE_BYTES, "Hard": MAX_FILE_BYTES},
            ],
            "RestartPolicy": {"Name": "no"},
            "LogConfig": _LOG,
        }
