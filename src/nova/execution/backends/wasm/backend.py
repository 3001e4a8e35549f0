"""WebAssembly modules in sandboxed processes: two walls, of which the inner one stands around every single call.

An instance is one of the sandbox's, with a worker that runs modules. The sandbox bounds the process; the engine gives each
call memory of its own, and a world of three folders without sockets. So nothing of a network is needed either.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from nova.domain.function import NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import Backend, Capabilities, Instance, InstanceSpec, InstanceStats

RUNTIME = "wasm"
_OFFLINE = NetworkPolicy(isolation_mode="strict")


@dataclass(frozen=True, slots=True)
class WasmOptions:
    """``missing`` says what the host lacks to run modules, empty when it lacks nothing. ``overhead_mb`` is what a worker
    takes itself: an instance has that much beside the memory that its function was given, all of which its calls can use."""

    missing: str = ""
    overhead_mb: int = 32


class WasmBackend:
    """``sandbox`` makes the instances. It is started and closed by whoever owns it, and reconciles what is in it."""

    name = "wasm"

    def __init__(self, options: WasmOptions, sandbox: Backend) -> None:
        self._options = options
        self._sandbox = sandbox

    async def start(self) -> None:
        """Nothing to do: workers start with their instances."""

    async def close(self) -> None:
        """Nothing to do: the sandbox ends what is left in it."""

    async def capabilities(self) -> Capabilities:
        """Those of the sandbox, and above it: a call has to break out of the engine first. Whatever network policy a
        function has holds, since a module has no sockets."""
        outer = await self._sandbox.capabilities()
        return Capabilities(
            available=outer.available and not self._options.missing,
            reason=self._options.missing or outer.reason,
            isolation="wasm",
            enforces={**outer.enforces, "network_rules": "hard", "net_io": "hard"},
            runtimes=frozenset({RUNTIME}),
            strength=outer.strength + 5,
            template=outer.template,
            reload=outer.reload,
        )

    async def create(self, spec: InstanceSpec) -> Instance:
        if spec.runtime != RUNTIME:
            raise NovaError("unsupported", f"runtime: the wasm backend runs WebAssembly modules, not {spec.runtime}")
        if self._options.missing:
            raise NovaError("unsupported", f"the wasm backend does not work on this host: {self._options.missing}")
        for field, mounted in (("layers", spec.layers), ("mounts", spec.mounts)):
            if mounted:
                raise NovaError("unsupported", f"{field}: the wasm backend mounts nothing into modules")
        limits = replace(spec.limits, memory_mb=spec.limits.memory_mb + self._options.overhead_mb, net_mbps=0)
        return await self._sandbox.create(replace(spec, limits=limits, network=_OFFLINE))

    async def stop(self, instance: Instance, *, reason: str) -> None:
        await self._sandbox.stop(instance, reason=reason)

    async def stats(self, instance: Instance) -> InstanceStats:
        return await self._sandbox.stats(instance)

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        """Nothing of its own: see the sandbox."""
        return []
