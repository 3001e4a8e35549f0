"""Who wants to know what happens to jobs and deliveries (metrics). Must not block or raise."""

from typing import Protocol

from nova.domain.asyncs import Outcome
from nova.domain.identity import Scope


class JobEvents(Protocol):
    def job_accepted(self, scope: Scope, function: str) -> None: ...

    def job_retried(self, scope: Scope, function: str) -> None:
        """An attempt failed and another follows."""
        ...

    def job_ended(self, scope: Scope, function: str, status: Outcome) -> None: ...

    def delivery_ended(self, scope: Scope, type: str, status: str) -> None:
        """``status`` is ``delivered`` or ``dead``."""
        ...


class NoEvents:
    def job_accepted(self, scope: Scope, function: str) -> None:
        pass

    def job_retried(self, scope: Scope, function: str) -> None:
        pass

    def job_ended(self, scope: Scope, function: str, status: Outcome) -> None:
        pass

    def delivery_ended(self, scope: Scope, type: str, status: str) -> None:
        pass
