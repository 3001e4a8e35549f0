"""Which backend runs a function, and the refusal when it cannot enforce what the function asks for."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.function import FunctionSnapshot, IsolationMode, Limits, NetworkPolicy
from nova.domain.needs import Needs
from nova.errors import FieldError, NovaError
from nova.execution.backends.base import Backend, Capabilities
from nova.execution.backends.probing import Candidate, Proofs, prove, refused
from nova.service import Background

log = structlog.get_logger(__name__)

AUTO = "auto"
OFFLINE = NetworkPolicy(isolation_mode="strict")
_ORDINARY: Final = Limits()
FAILED_S: Final = 60.0
"""A backend on which nothing booted is tried again after so long."""


class BackendRouter:
    """Backends by name. ``auto`` takes the strongest that is available and enforces the function's settings; of those that
    run virtual machines, only what has booted one on this host."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        later: Sequence[Candidate] = (),
        proofs: Proofs | None = None,
        default: str = AUTO,
        default_isolation: IsolationMode = "egress-only",
        strict_limits: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``backends`` are started with the router, and so is ``default`` if it names one of ``later``, which are looked at
        when somebody asks for them or :meth:`explore` is called. ``default`` is what ``auto`` means here; with
        ``strict_limits`` a limit that holds only softly is refused too."""
        first = [Candidate.of(backend) for backend in backends]
        self._candidates = {candidate.name: candidate for candidate in (*first, *later)}
        self._at_once = {candidate.name for candidate in first} | {default} & set(self._candidates)
        self._proofs = proofs
        self._proven: set[str] = set()
        self._failed: dict[str, tuple[str, float]] = {}
        """why nothing boots there, by backend, and since when"""
        self._clock = clock
        self._proving: set[str] = set()
        self._default = default
        self._default_isolation = default_isolation
        self._strict = strict_limits
        self._capabilities: dict[str, Capabilities] = {}
        self._listeners: list[Callable[[], None]] = []
        self._tasks = Background("backends")

    async def start(self) -> None:
        for name in self._candidates:
            if name in self._at_once:
                await self._look(name)

    def explore(self) -> None:
        """Look at every backend in the background."""
        self._tasks.spawn("look", self.look())

    async def look(self) -> None:
        """Look at every backend; what was looked at a moment ago is not looked at again."""
        await asyncio.gather(*map(self._look, self._candidates))

    async def _look(self, name: str) -> None:
        candidate = self._candidates.get(name)
        if candidate is None:
            return
        found = await candidate.look()
        reason, since = self._failed.get(name, ("", 0.0))
        if reason and self._clock.monotonic() - since < FAILED_S:
            found = refused(found, reason)
        changed = self._capabilities.get(name) != found
        self._capabilities[name] = found
        if changed:
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever :attr:`capabilities` are others than before."""
        self._listeners.append(listener)

    async def close(self) -> None:
        await self._tasks.close()
        for candidate in reversed(self._candidates.values()):
            await candidate.close()

    @property
    def capabilities(self) -> Mapping[str, Capabilities]:
        """By backend name, as far as they were looked at."""
        return self._capabilities

    @property
    def default(self) -> str:
        """What ``auto`` means here: ``auto`` or the name of a backend."""
        return self._default

    async def select(self, snapshot: FunctionSnapshot) -> Backend:
        """The backend of a function; raises ``unsupported`` as :meth:`check` does."""
        name = await self.check(snapshot.backend, Needs.of(snapshot))
        backend = self._candidates[name].backend
        assert backend is not None, "what is available has been started"
        return backend

    async def ready(self, backend: str, runtime: str) -> None:
        """Wait until it is known what ``backend`` (or ``auto``) is for a function of this runtime."""
        wanted = self._default if backend == AUTO else backend
        if wanted == AUTO:
            if not self._ordered(runtime):
                await self.look()
        elif wanted not in self._capabilities:
            await self._look(wanted)

    async def check(self, backend: str, needs: Needs) -> str:
        """The name of the backend that would run this.

        Raises NovaError ``unsupported`` that names the backend and each field it cannot enforce.
        """
        await self.ready(backend, needs.runtime)
        name, problems = self._judge(backend, needs)
        if name is None and self._stale(backend):
            await self.look()
            name, problems = self._judge(backend, needs)
        if name is not None:
            return name
        detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        raise NovaError("unsupported", detail, errors=problems)

    def _stale(self, backend: str) -> bool:
        """May another look find more?"""
        wanted = self._default if backend == AUTO else backend
        names = self._candidates if wanted == AUTO else {wanted} & set(self._candidates)
        return any(self._candidates[name].stale for name in names)

    def _judge(self, backend: str, needs: Needs) -> tuple[str | None, list[FieldError]]:
        problems: list[FieldError] = []
        names = self._names(backend, needs.runtime)
        for name in names:
            found = self._problems(name, needs)
            if not found and self._boots(name, asked_for=len(names) == 1):
                return name, []
            problems += found or [FieldError("backend", f"{name} is being tried; nothing has booted there yet")]
        return None, problems or [FieldError("backend", f"{backend!r} is not a backend of this server")]

    def default_network(self, backend: str, runtime: str = "") -> NetworkPolicy:
        """What a function without a policy gets: the configured isolation, or offline where rules cannot be enforced."""
        for name in self._names(backend, runtime):
            capabilities = self._capabilities[name]
            if capabilities.available and self._holds(capabilities, "network_rules"):
                return NetworkPolicy(isolation_mode=self._default_isolation)
        return OFFLINE

    def _names(self, backend: str, runtime: str) -> list[str]:
        """Where this may run, best first."""
        wanted = self._default if backend == AUTO else backend
        if wanted == AUTO:
            return self._ordered(runtime) or list(self._capabilities)
        return [wanted] if wanted in self._capabilities else []

    def _ordered(self, runtime: str) -> list[str]:
        fit = [
            name
            for name, found in self._capabilities.items()
            if found.available and (not runtime or found.runtimes is None or runtime in found.runtimes)
        ]
        return sorted(fit, key=lambda name: -self._capabilities[name].strength)

    # -- virtual machines: a device node is no proof ----------------------------------------------------------------

    def _boots(self, name: str, *, asked_for: bool) -> bool:
        """Has it booted something here? If not, that is tried now, in the background. Who asks for it by name tries it
        himself."""
        if asked_for or self._capabilities[name].isolation != "vm" or name in self._proven:
            return True
        if self._proofs is not None and self._proofs.holds(name):
            self._proven.add(name)
            return True
        if name not in self._proving:
            self._proving.add(name)
            self._tasks.spawn("prove", self._prove(name))
        return False

    async def _prove(self, name: str) -> None:
        backend = self._candidates[name].backend
        assert backend is not None
        reason = await prove(backend, self._capabilities[name])
        self._proving.discard(name)
        if reason:
            log.warning("a backend is not used", backend=name, reason=reason)
            self._failed[name] = reason, self._clock.monotonic()
            await self._look(name)
            return
        if self._proofs is not None:
            self._proofs.keep(name)
        self._proven.add(name)
        log.info("a backend has booted an instance", backend=name)
        self._tell()

    # -- what it enforces --------------------------------------------------------------------------------------------

    def _holds(self, capabilities: Capabilities, resource: str) -> bool:
        level = capabilities.enforces.get(resource, "no")
        return level == "hard" or (level == "soft" and not self._strict)

    def _problems(self, name: str, needs: Needs) -> list[FieldError]:
        capabilities = self._capabilities[name]
        if not capabilities.available:
            return [FieldError("backend", f"{name} is not available here: {capabilities.reason}")]
        problems = []
        if capabilities.runtimes is not None and needs.runtime not in capabilities.runtimes:
            problems.append(FieldError("runtime", _no_runtime(name, needs.runtime)))
        network = needs.network or self.default_network(name)
        for field, resource in _asked(needs.limits, network).items():
            if not self._holds(capabilities, resource):
                problems.append(FieldError(field, f"{name} cannot enforce it on this host"))
        for field, wanted, able in (
            ("layers", needs.layers, capabilities.layers),
            ("mounts", needs.volumes, capabilities.volumes),
        ):
            if wanted and not able:
                problems.append(FieldError(field, f"{name} has none"))
        return problems


def _no_runtime(name: str, runtime: str) -> str:
    form = {"docker": "tar", "qemu": "ext4", "firecracker": "ext4"}.get(name)
    if form is None or runtime == "wasm":
        return f"{name} does not run {runtime}"
    return f"{name} has no image of {runtime} on this node; make it with: nova runtime build {runtime} --form {form}"


def _asked(limits: Limits, network: NetworkPolicy) -> dict[str, str]:
    """Fields that need something enforced, and what. A CPU share or a number of processes counts only when it was asked for:
    machines hold their processes by their memory."""
    asked = {"memory_mb": "memory", "limits.tmp_mb": "disk"}
    if limits.pids != _ORDINARY.pids:
        asked["limits.pids"] = "pids"
    if limits.vcpus:
        asked["limits.vcpus"] = "cpu"
    if not network.offline:
        asked["network_policy"] = "network_rules"
    if limits.net_mbps:
        asked["limits.net_mbps"] = "net_io"
    return asked
