"""What the comets of the cluster can enforce, for planes that run no instances themselves."""

from collections.abc import Mapping

from nova.domain.function import IsolationMode
from nova.domain.needs import Needs
from nova.execution.backends.base import Capabilities
from nova.execution.backends.router import BackendRouter


class AdvertisedBackends(BackendRouter):
    """:meth:`check` as on a comet, by what comets last said of themselves; without any word from one, everything passes:
    the control plane takes functions while no comet is up, and the comet that runs them refuses what it cannot enforce."""

    def __init__(self, *, default: str, default_isolation: IsolationMode, strict_limits: bool) -> None:
        super().__init__([], default=default, default_isolation=default_isolation, strict_limits=strict_limits)

    def learn(self, capabilities: Mapping[str, Capabilities]) -> None:
        """Take what a comet says, in place of what was known."""
        if capabilities:
            self._capabilities = dict(capabilities)

    async def check(self, backend: str, needs: Needs) -> str:
        if not self._capabilities:
            return backend
        return await super().check(backend, needs)

    def _boots(self, name: str, *, asked_for: bool) -> bool:
        """Comets try that."""
        return True
