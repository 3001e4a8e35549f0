"""What an isolation technology must offer. One module or folder beside this one implements it.

A backend makes *instances*: isolated places, each with an agent that listens, limits applied, code mounted at ``/code``.
It knows nothing of functions, pools or calls; it frees everything it made when an instance stops, whatever fails.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

from nova.domain.call import StartSource
from nova.domain.function import EntryKind, FunctionSnapshot, Limits, Mode, NetworkPolicy
from nova.domain.stream import Sink
from nova.errors import FunctionError

Enforced = Literal["hard", "soft", "no"]
Isolation = Literal["vm", "container", "process", "wasm"]
RESOURCES = ("memory", "cpu", "pids", "disk", "network_rules", "net_io", "disk_io", "read_only_root", "user", "seccomp")
"""What :attr:`Capabilities.enforces` speaks of. No function asks for ``disk_io``: it is the operator's, for all instances."""
STRENGTH = {"firecracker": 50, "qemu": 40, "sandbox": 30, "docker": 20, "qemu-emulated": 10, "wasm": 0}
"""Stronger first: a kernel of its own behind hardware, then this kernel with our own filters, then another's daemon, then a
machine emulated at a tenth of the speed. WebAssembly has a runtime of its own and competes with nobody."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this backend can do on this host, found by trying, not by guessing.

    ``enforces`` maps each of :data:`RESOURCES` to how it holds.
    ``strength`` orders backends where ``auto`` has a choice, see :data:`STRENGTH`. ``runtimes`` None: whatever the host has.
    ``snapshot``: functions can be kept loaded; ``template``: blank instances stand ready; ``reload``: an instance takes new
    code; ``layers`` and ``volumes``: their folders can be mounted.
    """

    available: bool
    reason: str
    isolation: Isolation
    enforces: Mapping[str, Enforced]
    runtimes: frozenset[str] | None = None
    strength: int = 0
    snapshot: bool = False
    template: bool = False
    reload: bool = False
    layers: bool = False
    volumes: bool = False


@dataclass(frozen=True, slots=True)
class LayerMount:
    """A host folder that is mounted read-only at ``target``, which lies below ``/layers``."""

    path: Path
    target: str


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A host folder that outlives instances, mounted at ``target`` (``/mnt/…``). Where it is not ``read_only``, the user of
    the instance's workers may write there."""

    path: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What to make. ``code`` is a host directory that is mounted read-only at ``/code`` (None: nothing mounted)."""

    instance_id: str
    runtime: str
    runtime_version: str
    code: Path | None
    limits: Limits
    network: NetworkPolicy
    layers: tuple[LayerMount, ...] = ()
    mounts: tuple[VolumeMount, ...] = ()


@dataclass(frozen=True, slots=True)
class InitSpec:
    """The head of the Init frame: what the agent needs to load a function."""

    function_id: str
    name: str
    version: int
    tenant: str
    namespace: str
    runtime: str
    runtime_version: str
    mode: Mode
    handler: str
    entry: str
    entry_kind: EntryKind
    env: Mapping[str, str]
    memory_mb: int
    timeout_s: int
    concurrency: int
    open_files: int
    layers: int = 0
    """how many are mounted, at ``/layers/0`` and so on"""

    @classmethod
    def of(cls, snapshot: FunctionSnapshot) -> "InitSpec":
        return cls(
            function_id=snapshot.function_id,
            name=snapshot.name,
            version=snapshot.version,
            tenant=snapshot.scope.tenant,
            namespace=snapshot.scope.namespace,
            runtime=snapshot.runtime,
            runtime_version=snapshot.runtime_version,
            mode=snapshot.mode,
            handler=snapshot.handler,
            entry=snapshot.entry,
            entry_kind=snapshot.entry_kind,
            env=dict(snapshot.env),
            memory_mb=snapshot.limits.memory_mb,
            timeout_s=snapshot.timeout_s,
            concurrency=snapshot.concurrency,
            open_files=snapshot.limits.open_files,
            layers=len(snapshot.layers),
        )


@dataclass(frozen=True, slots=True)
class InitDone:
    """The code is loaded. ``concurrency`` is how many calls the worker really takes at once; ``import_us`` the part of
    ``init_us`` in which the language imported the code, 0 where that is not known."""

    init_us: int
    concurrency: int
    stdout: str = ""
    stderr: str = ""
    import_us: int = 0


class WorkerCall(Struct):
    """One call on its way into a worker. ``payload`` is checked JSON; ``context`` is the JSON object of the line.

    ``deadline`` is monotonic seconds. With a ``sink`` the call streams: one that is silent for ``idle_s`` seconds
    (0: however long) has timed out, and all its pieces have at most ``stream_limit`` bytes.
    """

    request_id: str
    payload: bytes
    context: bytes
    deadline: float
    sink: Sink | None = None
    idle_s: float = 0
    stream_limit: int = 1 << 30


class WorkerResult(Struct):
    """What came back: ``output`` as checked JSON bytes, or ``error``. Prints are those of this call alone."""

    output: bytes | None
    error: FunctionError | None
    stdout: str = ""
    stderr: str = ""


class InitFailed(Exception):
    """The code could not be loaded; the instance is of no further use."""

    def __init__(self, error: FunctionError, stdout: str = "", stderr: str = "") -> None:
        super().__init__(f"{error.type}: {error.message}")
        self.error = error
        self.stdout = stdout
        self.stderr = stderr


class Channel(Protocol):
    """The host's end of one instance's agent connection (and, in direct mode, of its worker lines)."""

    async def init(self, spec: InitSpec) -> InitDone:
        """Load the function. Raises :class:`InitFailed`."""
        ...

    def call(self, call: WorkerCall) -> Awaitable[WorkerResult]:
        """Send one call, at once, without a task of its own, and return what to await.

        The awaitable always ends: with a result, or with a result whose error is ``Nova.Timeout`` (the deadline passed),
        ``Nova.Cancelled``, ``Nova.InstanceLost``, ``Nova.ExitError``, ``Nova.Signal``, ``Nova.OutOfMemory`` or
        ``Nova.WorkerLost``. A call is never sent twice. Cancelling the awaitable cancels the call.
        """
        ...

    async def ping(self, timeout_s: float) -> bool: ...

    @property
    def usable(self) -> bool:
        """False once the instance must not get another call (lost, killed, timed out)."""
        ...

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Called once, when the channel becomes unusable."""
        ...


@dataclass(slots=True)
class InstanceStats:
    memory_bytes: int = 0
    cpu_us: int = 0
    pids: int = 0
    oom_kills: int = 0


class Instance(Protocol):
    """A running instance. ``source`` says where it really came from; ``runtime_us`` how long its agent took to start, if that
    was not done beforehand."""

    instance_id: str
    source: StartSource
    channel: Channel
    runtime_us: int


@runtime_checkable
class Movable(Protocol):
    """An instance whose processes the scheduler of this host sees."""

    def keep_to(self, processors: Collection[int]) -> None:
        """Let them run on these alone."""
        ...


@runtime_checkable
class Resting(Protocol):
    """A backend whose instances can do with less memory while nothing is asked of them."""

    async def rest(self, instance: Instance) -> bool:
        """Nothing was asked of it for a while. Its next call may take some tenths of a millisecond longer. False: not now."""
        ...


@dataclass(frozen=True, slots=True)
class Bind:
    """Make the host's ``source`` visible at ``target`` inside."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command to run once in an isolated place of its own (builds): no network but what ``binds`` bring in."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    binds: tuple[Bind, ...]
    limits: Limits
    timeout_s: float
    output: Callable[[bytes], None] = field(default=lambda _data: None)
    """called with each piece of stdout and stderr, in order"""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """``exit_code`` is None when a signal ended it."""

    exit_code: int | None
    signal: int | None = None
    timed_out: bool = False
    out_of_memory: bool = False


class CommandRunner(Protocol):
    """A backend that also runs commands (builds)."""

    async def run(self, command: CommandSpec) -> CommandResult:
        """Run one command isolated like an instance and wait for its end."""
        ...


class SnapshotRefused(Exception):
    """A function cannot be kept loaded; the message says why."""


@runtime_checkable
class Snapshotter(Protocol):
    """A backend that can keep a function loaded and make instances of it that need not load it again.

    A snapshot is taken after loading and before any call, so it holds nothing of a caller's. ``key`` stands for
    everything that shaped it.
    """

    def snapshot_obstacle(self, runtime: str) -> str:
        """Why no function of this runtime can be kept loaded here; empty when some can."""
        ...

    async def snapshot(self, key: str, spec: InstanceSpec, init: InitSpec) -> None:
        """Load the function in an instance of its own and keep that. Raises :class:`SnapshotRefused`, NovaError,
        :class:`InitFailed`."""
        ...

    async def restore(self, key: str, spec: InstanceSpec) -> Instance | None:
        """An instance from that snapshot; its Init only makes it its own. None when the snapshot is gone or of no use."""
        ...

    async def drop_snapshot(self, key: str) -> None:
        """No instance comes from it any more; those that did live on. Idempotent."""
        ...

    async def snapshot_memory(self, key: str) -> int:
        """Bytes that the loaded function takes; 0 when it is gone."""
        ...


class Backend(Protocol):
    name: str

    async def start(self) -> None:
        """Get ready: look at the host, reconcile what a killed predecessor left, begin to fill templates.

        Cheap: it happens in every daemon, also in one that never makes an instance here, so nothing boots before it
        returns. What is missing is better said by :meth:`capabilities` than raised; what it raises is said in its place.
        """
        ...

    async def capabilities(self) -> Capabilities:
        """As of now; asked again from time to time, so that a service that came or went is noticed."""
        ...

    async def create(self, spec: InstanceSpec) -> Instance:
        """An instance with its agent connected and its code mounted, not loaded yet. Leaves nothing behind on failure.

        Raises NovaError ``unsupported`` when the host cannot enforce the spec, naming the field; ``capacity`` when full.
        """
        ...

    async def stop(self, instance: Instance, *, reason: str) -> None:
        """Kill it and free everything; idempotent."""
        ...

    async def stats(self, instance: Instance) -> InstanceStats: ...

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        """Remove what this node made and nobody owns; returns what was removed."""
        ...

    async def close(self) -> None: ...
