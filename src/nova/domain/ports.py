"""The ports through which planes act on each other; everything else crosses through the store."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nova.domain.call import Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.message import NewMessage, Published
from nova.domain.stream import Sink
from nova.errors import NovaError


class Invoker(Protocol):
    async def invoke(self, call: CallRequest) -> CallResult:
        """Run one call to its end. Raises NovaError when it was refused or its instance was lost."""
        ...


@runtime_checkable
class Streamer(Protocol):
    """An invoker of calls that answer piece by piece."""

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """Run one call to its end; its pieces go to ``sink`` as they come. Cancelling it cancels the handler.

        ``output`` of the result is what the handler returned beside its pieces (``null`` for a generator). Raises as
        :meth:`Invoker.invoke` does.
        """
        ...


class Flight(Protocol):
    """A call under way."""

    def cancel(self) -> None: ...


@runtime_checkable
class Starter(Protocol):
    """An invoker that starts a call without a task when there is nothing to wait for, and None when there is."""

    def begin(self, call: CallRequest, done: Callable[[CallResult | NovaError], None]) -> Flight | None: ...


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    instance_id: str
    function: str
    version: int
    backend: str
    state: str
    inflight: int
    calls: int
    age_s: float


class Fleet(Protocol):
    async def instances(self, scope: Scope, function: str) -> Sequence[InstanceInfo]: ...

    def stats(self) -> dict[str, Any]:
        """Pools, instances and queue depths as they are now."""
        ...


@dataclass(frozen=True, slots=True)
class Warmth:
    """Instances of one version: those that take calls, busy ones included, and those that are being made."""

    ready: int
    starting: int


class Scaler(Protocol):
    """The port through which corona sees to it that enough instances stand ready."""

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        """Keep at least ``replicas`` instances of the live version for ``ttl_s`` seconds; 0 takes an earlier wish back.

        Returns how many there are now, those that are booting included. Raises NovaError (``not_found``).
        """
        ...

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        """The same for any version, beside what :meth:`scale` asks for: the higher number counts.

        Returns what there is right after asking. Raises NovaError (``not_found``, ``build_pending``,
        ``validation_failed`` for more than ``max_replicas``).
        """
        ...


class Acceptor(Protocol):
    """Takes calls that nobody waits for."""

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        """Commit the call to the queue, then return. Raises NovaError: ``not_found``, ``validation_failed``."""
        ...


@runtime_checkable
class Entrance(Protocol):
    """An acceptor that needs no task for a call."""

    def enter(self, call: CallRequest, options: AsyncOptions) -> "asyncio.Future[Accepted]":
        """As :meth:`Acceptor.accept`; what is wrong is raised, or comes to the future."""
        ...


class Publisher(Protocol):
    """The port through which messages get into a topic."""

    async def publish(
        self, scope: Scope, topic: str, messages: Sequence[NewMessage], *, caller: str
    ) -> Sequence[Published]:
        """Returns when they are committed, in their order. Raises ``not_found``, ``validation_failed`` (the topic's schema),
        ``payload_too_large`` or ``dependency_unavailable``."""
        ...


class WorkflowStarter(Protocol):
    """The port through which runs of workflows begin that no person asked for."""

    async def start(
        self,
        scope: Scope,
        workflow: str,
        payload: bytes,
        *,
        key: str,
        caller: str,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> str:
        """Begin a run, once for each ``key`` of the workflow; its id, when it is committed.

        ``payload`` is the run's input. ``caller`` is the subject in whose name it runs. Raises ``not_found``,
        ``inflight_limit``, ``halted`` or ``dependency_unavailable``.
        """
        ...
