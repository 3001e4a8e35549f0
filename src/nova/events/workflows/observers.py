"""Who wants to know what happens to runs (metrics). Must not block or raise."""

from typing import Protocol

from nova.domain.identity import Scope


class RunEvents(Protocol):
    def run_ended(self, scope: Scope, workflow: str, status: str) -> None: ...

    def node_ended(self, status: str) -> None:
        """A node, or one item of a map."""
        ...


class NoEvents:
    def run_ended(self, scope: Scope, workflow: str, status: str) -> None:
        pass

    def node_ended(self, status: str) -> None:
        pass
