"""The function, as the execution plane sees it: one immutable object per version."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nova.domain.identity import Scope
from nova.domain.layer import LayerRef
from nova.domain.shadow import Shadow
from nova.domain.volume import Mount

Mode = Literal["persistent", "process", "durable"]
"""``durable``: persistent, and its calls are executions that outlive instances (:mod:`nova.domain.durable`)."""
EntryKind = Literal["handler", "script"]
IsolationMode = Literal["egress-only", "strict", "none"]
SnapshotPolicy = Literal["auto", "off"]
"""Whether instances may come from a function that was loaded once and is kept."""
CompileStatus = Literal["not_required", "pending", "compiling", "success", "failed"]
VCPU_PER_MB = 1 / 1769
"""CPU share that comes with memory: one vCPU for each 1769 MiB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of one instance.

    ``vcpus`` given is a hard quota. 0 means by memory: a share of :data:`VCPU_PER_MB` that counts when instances compete,
    under a ceiling of one whole vCPU (or of the share, when that is more), so that idle cores are never withheld.
    """

    memory_mb: int = 128
    vcpus: float = 0
    pids: int = 256
    tmp_mb: int = 64
    open_files: int = 1024
    net_mbps: int = 0
    """Mbit/s each way, to and from the network; 0: not limited"""

    @property
    def cpu_share(self) -> float:
        """In vCPUs: what the instance gets at least, relative to others, when all want to run."""
        return self.vcpus or max(0.1, round(self.memory_mb * VCPU_PER_MB, 3))

    @property
    def cpu_ceiling(self) -> float:
        """In vCPUs: what the instance never exceeds."""
        return self.vcpus or max(1.0, self.cpu_share)


@dataclass(frozen=True, slots=True)
class EgressRule:
    """Allow one destination: ``host`` is an IP address, a CIDR, a host name, or ``*.`` and a domain for every name below
    it; ``port`` 0 means every port."""

    host: str
    port: int = 0
    protocol: Literal["tcp", "udp", "any"] = "any"


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """``none``: all egress but the always-blocked; ``egress-only``: the rules, or anywhere when there are none;
    ``strict``: only the rules, so without rules the instance is offline."""

    isolation_mode: IsolationMode = "egress-only"
    egress_rules: tuple[EgressRule, ...] = ()
    deny_external_access: bool = False

    @property
    def offline(self) -> bool:
        return self.isolation_mode == "strict" and not self.egress_rules


CapturePolicy = Literal["all", "errors", "none"]
ShedStatus = Literal[503, 429]


@dataclass(frozen=True, slots=True)
class Capacity:
    """When calls of a function are turned away, on each node. ``max_inflight`` counts calls that run or wait; 0 means that
    only the queue is bounded. None: as the settings of the pool say."""

    max_inflight: int = 0
    max_queue_depth: int | None = None
    max_queue_wait_ms: int | None = None
    shed_status_code: ShedStatus = 503


@dataclass(frozen=True, slots=True)
class Window:
    """Instances that stand ready from each instant of ``cron`` on, for ``duration_s`` seconds."""

    cron: str
    duration_s: int
    replicas: int
    time_zone: str = "UTC"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Capture:
    """Which payloads of a call its record keeps. One that is over ``max_kb`` (KiB) is not kept at all, never cut.

    ``redact`` are JSON Pointers into input and output; what they point at is stored as ``***``.
    """

    payloads: CapturePolicy = "all"
    max_kb: int = 64
    redact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionSnapshot:
    """Everything that shapes the execution of one version; immutable, shared by all its calls.

    ``artifact`` is the digest (``sha256:…``) of the tree that is mounted at ``/code``. ``pool_key`` is a digest over
    everything that shapes an instance: two snapshots with equal keys may share instances, others never do.
    ``generation`` is the function's when the snapshot was taken: of two with equal keys the higher one is newer.
    """

    scope: Scope
    function_id: str
    name: str
    version: int
    runtime: str
    runtime_version: str
    handler: str
    entry: str
    entry_kind: EntryKind
    mode: Mode
    timeout_s: int
    concurrency: int
    limits: Limits
    network: NetworkPolicy
    env: Mapping[str, str]
    artifact: str
    compile_status: CompileStatus
    build_id: str | None
    backend: str
    max_replicas: int
    idle_ttl_s: float | None
    function_url: bool
    pool_key: str = field(default="")
    capture: Capture = field(default=Capture())
    generation: int = 0
    capacity: Capacity = field(default=Capacity())
    max_calls: int = 0
    """calls after which an instance is replaced; 0: never"""
    max_instance_age_s: int = 0
    """seconds after which it is; 0: never"""
    stream_idle_s: int = 0
    snapshot: SnapshotPolicy = "auto"
    """seconds that a stream may be silent; 0: however long"""
    shadow: Shadow | None = None
    """where copies of its calls go"""
    layers: tuple[LayerRef, ...] = ()
    """mounted at ``/layers/0`` and so on; of two that hold the same, the later one wins"""
    mounts: tuple[Mount, ...] = ()
