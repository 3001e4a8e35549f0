"""The heads of the frames: one definition for both ends. Unknown members are ignored, wrong types refused."""

import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar

from nova.agent.frames import MAX_MESSAGE, PROTOCOL, FrameError

T = TypeVar("T")


def take(head: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Member ``name`` of a head. Raises :class:`FrameError` when it is missing or of another type."""
    value = head.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FrameError("bad_head", f"{name} must be {kind.__name__}")
    return value


@dataclass(frozen=True, slots=True)
class GuestError:
    """An error object of a worker or the agent: message at most 8 KiB, at most 64 stack lines of at most 512 bytes."""

    type: str
    message: str
    stack: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"type": self.type, "message": self.message, "stack": list(self.stack)}

    @classmethod
    def of(cls, value: object) -> Self:
        """From whatever a worker sent as its error: an object, or a bare string."""
        if not isinstance(value, dict):
            return cls("Error", clip(value if isinstance(value, str) else repr(value), 8192))
        stack = value.get("stack")
        lines = stack if isinstance(stack, list) else []
        return cls(
            type=clip(str(value.get("type") or "Error"), 256),
            message=clip(str(value.get("message", "")), 8192),
            stack=tuple(clip(str(line), 512) for line in lines[-64:]),
        )


def clip(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` bytes of UTF-8, cut at a character; lone surrogates become ``\\udXXX`` escapes."""
    data = text.encode("utf-8", "backslashreplace")
    return data[:limit].decode("utf-8", "ignore")


def end_error(exit_code: int | None, number: int | None) -> GuestError:
    """What the end of a process means for who was waiting for its answer; ``number`` of a signal if it had no code."""
    if exit_code is not None:
        return GuestError("Nova.ExitError", f"the process exited with code {exit_code}")
    try:
        name = signal.Signals(number or 0).name
    except ValueError:
        name = f"signal {number}"
    return GuestError("Nova.Signal", f"the process was ended by {name}")


@dataclass(frozen=True, slots=True)
class HelloHead:
    """The host's first frame. ``token`` is hex; ``proto`` the lowest and highest protocol version it speaks."""

    token: str
    instance_id: str
    proto: tuple[int, int] = (PROTOCOL, PROTOCOL)
    max_message: int = MAX_MESSAGE

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        proto = take(head, "proto", list)
        if len(proto) != 2 or not all(isinstance(number, int) for number in proto):
            raise FrameError("bad_head", "proto must be two integers")
        return cls(
            token=take(head, "token", str),
            instance_id=take(head, "instance_id", str),
            proto=(proto[0], proto[1]),
            max_message=take(head, "max_message", int),
        )


@dataclass(frozen=True, slots=True)
class WelcomeHead:
    """The agent's answer to Hello. ``fds`` descriptors of the standing worker come with it: lines, stdout, stderr."""

    agent: str
    runtimes: tuple[str, ...]
    boot_us: int
    fds: int
    proto: int = PROTOCOL
    state: str = "blank"
    features: tuple[str, ...] = ("direct",)
    max_message: int = MAX_MESSAGE

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        return cls(
            agent=take(head, "agent", str),
            runtimes=tuple(take(head, "runtimes", list)),
            boot_us=take(head, "boot_us", int),
            fds=take(head, "fds", int),
            proto=take(head, "proto", int),
            state=take(head, "state", str),
            features=tuple(take(head, "features", list)),
            max_message=take(head, "max_message", int),
        )


@dataclass(frozen=True, slots=True)
class FunctionRef:
    id: str
    name: str
    version: int
    tenant: str
    namespace: str


@dataclass(frozen=True, slots=True)
class InitHead:
    """What the agent needs to load a function."""

    function: FunctionRef
    instance_id: str
    runtime: str
    mode: str
    handler: str
    entry: str
    entry_kind: str
    env: Mapping[str, str]
    memory_mb: int
    timeout_s: int
    concurrency: int
    open_files: int
    layers: int = 0
    """mounted at ``/layers/0`` and so on; a later one comes first on the search paths"""
    loaded: bool = False
    """the host has loaded it into the standing worker; the agent needs to know for what is asked of it next"""
    api_token: str = ""
    """what workers show to the guest API, if the host has chosen it"""

    def as_head(self) -> dict[str, Any]:
        return asdict(self) | {"env": dict(self.env)}

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        function = take(head, "function", dict)
        env = take(head, "env", dict)
        if not all(isinstance(value, str) for value in env.values()):
            raise FrameError("bad_head", "env must map names to strings")
        return cls(
            function=FunctionRef(
                id=take(function, "id", str),
                name=take(function, "name", str),
                version=take(function, "version", int),
                tenant=take(function, "tenant", str),
                namespace=take(function, "namespace", str),
            ),
            instance_id=take(head, "instance_id", str),
            runtime=take(head, "runtime", str),
            mode=take(head, "mode", str),
            handler=take(head, "handler", str),
            entry=take(head, "entry", str),
            entry_kind=take(head, "entry_kind", str),
            env=env,
            memory_mb=take(head, "memory_mb", int),
            timeout_s=take(head, "timeout_s", int),
            concurrency=take(head, "concurrency", int),
            open_files=take(head, "open_files", int),
            layers=take(head, "layers", int) if "layers" in head else 0,
            loaded=take(head, "loaded", bool) if "loaded" in head else False,
            api_token=take(head, "api_token", str) if "api_token" in head else "",
        )


@dataclass(frozen=True, slots=True)
class LoadedHead:
    """Resp to Init and AddWorker. With ``ok`` false only ``error`` and the prints say something.

    ``worker`` numbers the worker in later frames. ``multiplex``: it takes ``concurrency`` calls at once on one line
    socket; otherwise each further slot is another worker (AddWorker). ``fds`` is 3 when its descriptors come along.
    """

    ok: bool
    worker: int
    fds: int = 0
    init_us: int = 0
    concurrency: int = 1
    multiplex: bool = False
    stdout: str = ""
    stderr: str = ""
    error: GuestError | None = field(default=None)
    import_us: int = 0
    """the part of ``init_us`` in which the language imported the code, where the worker says so"""

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        error = head.get("error")
        return cls(
            ok=take(head, "ok", bool),
            worker=take(head, "worker", int),
            fds=take(head, "fds", int),
            init_us=take(head, "init_us", int),
            concurrency=take(head, "concurrency", int),
            multiplex=take(head, "multiplex", bool),
            stdout=take(head, "stdout", str),
            stderr=take(head, "stderr", str),
            error=None if error is None else GuestError.of(error),
            import_us=take(head, "import_us", int) if "import_us" in head else 0,
        )


@dataclass(frozen=True, slots=True)
class WorkerExitHead:
    """A worker ended. Exactly one of ``exit_code`` and ``signal`` is set."""

    worker: int
    pid: int
    exit_code: int | None
    signal: int | None

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        return cls(
            worker=take(head, "worker", int),
            pid=take(head, "pid", int),
            exit_code=None if head.get("exit_code") is None else take(head, "exit_code", int),
            signal=None if head.get("signal") is None else take(head, "signal", int),
        )


@dataclass(frozen=True, slots=True)
class KillWorkerHead:
    """The host gives up one worker: it and all that it started end; the Resp says that they are gone."""

    worker: int

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        return cls(worker=take(head, "worker", int))


@dataclass(frozen=True, slots=True)
class ReloadHead:
    """New code: ``stage`` is begin, data (the payload is a piece of the tar in base64), commit or abort.

    ``digest`` (``sha256:…``) and ``size`` in bytes are those of the whole tar; they, ``handler`` and ``entry`` go with begin.
    """

    stage: str
    digest: str = ""
    size: int = 0
    handler: str = ""
    entry: str = ""

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        return cls(
            stage=take(head, "stage", str),
            digest=take(head, "digest", str),
            size=take(head, "size", int),
            handler=take(head, "handler", str),
            entry=take(head, "entry", str),
        )


@dataclass(frozen=True, slots=True)
class PlaceHead:
    """What a machine that was booted for nobody is to be. ``mounts``: further drives, as ``nova.mounts`` of the kernel's command
    line. ``tmp_mb``, ``memory_mb`` and ``pids``: limits, in MB and processes."""

    mounts: str
    tmp_mb: int
    memory_mb: int
    pids: int

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        place = cls(
            mounts=take(head, "mounts", str),
            tmp_mb=take(head, "tmp_mb", int),
            memory_mb=take(head, "memory_mb", int),
            pids=take(head, "pids", int),
        )
        if min(place.tmp_mb, place.memory_mb, place.pids) < 1:
            raise FrameError("bad_head", "tmp_mb, memory_mb and pids are positive")
        return place


@dataclass(frozen=True, slots=True)
class ThawHead:
    """The machine goes on from a snapshot, as another instance.

    ``token_sha256`` (hex) replaces the snapshot's own, which is good for nothing from here on. ``now_ns`` is Unix time in
    nanoseconds, ``seed`` 64 random bytes in hex for the machine's random numbers. ``place`` is for machines that were booted
    for nobody, and for no others.
    """

    instance_id: str
    token_sha256: str
    now_ns: int
    seed: str
    place: PlaceHead | None = None

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        thaw = cls(
            instance_id=take(head, "instance_id", str),
            token_sha256=take(head, "token_sha256", str),
            now_ns=take(head, "now_ns", int),
            seed=take(head, "seed", str),
            place=None if head.get("place") is None else PlaceHead.of(take(head, "place", dict)),
        )
        try:
            sizes = len(bytes.fromhex(thaw.token_sha256)), len(bytes.fromhex(thaw.seed))
        except ValueError:
            sizes = 0, 0
        if sizes != (32, 64) or thaw.now_ns < 0:
            raise FrameError("bad_head", "token_sha256 is 32 bytes in hex, seed 64, now_ns positive")
        return thaw


@dataclass(frozen=True, slots=True)
class DoneHead:
    """Resp of what has no other answer."""

    ok: bool
    error: GuestError | None = None

    def as_head(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        error = head.get("error")
        return cls(ok=take(head, "ok", bool), error=None if error is None else GuestError.of(error))


@dataclass(frozen=True, slots=True)
class GuestAnswerHead:
    """What code inside gets for a question: an HTTP status and headers; the body is the payload."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_head(self) -> dict[str, Any]:
        return {"status": self.status, "headers": dict(self.headers)}

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Self:
        return cls(take(head, "status", int), take(head, "headers", dict))
