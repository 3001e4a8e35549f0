"""Which backend runs a function, and the refusal when it cannot enforce what the function asks for."""

from collections.abc import Mapping, Sequence

from nova.domain.function import FunctionSnapshot, IsolationMode, Limits, NetworkPolicy
from nova.errors import FieldError, NovaError
from nova.execution.backends.base import Backend, Capabilities

AUTO = "auto"
OFFLINE = NetworkPolicy(isolation_mode="strict")


class BackendRouter:
    """Backends by name, strongest first: ``auto`` takes the first that is available and enforces the function's settings."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        default: str = AUTO,
        default_isolation: IsolationMode = "egress-only",
        strict_limits: bool = False,
    ) -> None:
        """``default`` is what ``auto`` means here; with ``strict_limits`` a limit that holds only softly is refused too."""
        self._backends = {backend.name: backend for backend in backends}
        self._default = default
        self._default_isolation = default_isolation
        self._strict = strict_limits
        self._capabilities: dict[str, Capabilities] = {}

    async def start(self) -> None:
        for name, backend in self._backends.items():
            await backend.start()
            self._capabilities[name] = await backend.capabilities()

    async def close(self) -> None:
        for backend in self._backends.values():
            await backend.close()

    @property
    def capabilities(self) -> Mapping[str, Capabilities]:
        """By backend name, as probed at start."""
        return self._capabilities

    async def select(self, snapshot: FunctionSnapshot) -> Backend:
        """The backend of a function; raises ``unsupported`` as :meth:`check` does."""
        return self._backends[self.check(snapshot.backend, snapshot.runtime, snapshot.limits, snapshot.network)]

    def check(self, backend: str, runtime: str, limits: Limits, network: NetworkPolicy | None) -> str:
        """The name of the backend that would run this. ``network`` None stands for :meth:`default_network`.

        Raises NovaError ``unsupported`` that names the backend and each field it cannot enforce.
        """
        problems: list[FieldError] = []
        for name in self._candidates(backend):
            found = self._problems(name, runtime, limits, network or self.default_network(name))
            if not found:
                return name
            problems += found
        if not problems:
            problems = [FieldError("backend", f"{backend!r} is not a backend of this server")]
        detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        raise NovaError("unsupported", detail, errors=problems)

    def default_network(self, backend: str) -> NetworkPolicy:
        """What a function without a policy gets: the configured isolation, or offline where rules cannot be enforced."""
        for name in self._candidates(backend):
            capabilities = self._capabilities[name]
            if capabilities.available and self._holds(capabilities, "network_rules"):
                return NetworkPolicy(isolation_mode=self._default_isolation)
        return OFFLINE

    def _candidates(self, backend: str) -> list[str]:
        wanted = self._default if backend == AUTO else backend
        if wanted == AUTO:
            return list(self._capabilities)
        return [wanted] if wanted in self._capabilities else []

    def _holds(self, capabilities: Capabilities, resource: str) -> bool:
        level = capabilities.enforces.get(resource, "no")
        return level == "hard" or (level == "soft" and not self._strict)

    def _problems(self, name: str, runtime: str, limits: Limits, network: NetworkPolicy) -> list[FieldError]:
        capabilities = self._capabilities[name]
        if not capabilities.available:
            return [FieldError("backend", f"{name} is not available here: {capabilities.reason}")]
        problems = []
        if capabilities.runtimes is not None and runtime not in capabilities.runtimes:
            problems.append(FieldError("runtime", f"{name} does not run {runtime}"))
        for field, resource in _asked(limits, network).items():
            if not self._holds(capabilities, resource):
                problems.append(FieldError(field, f"{name} cannot enforce it on this host"))
        return problems


def _asked(limits: Limits, network: NetworkPolicy) -> dict[str, str]:
    """Fields that need something enforced, and what. A CPU share counts only when it was asked for by number."""
    asked = {"memory_mb": "memory", "limits.pids": "pids", "limits.tmp_mb": "disk"}
    if limits.vcpus:
        asked["limits.vcpus"] = "cpu"
    if not network.offline:
        asked["network_policy"] = "network_rules"
    if limits.net_mbps:
        asked["limits.net_mbps"] = "net_io"
    return asked
