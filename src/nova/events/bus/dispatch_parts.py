"""What every subscription that is delivered from here works with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nova.clock import Clock
from nova.domain.identity import Scope
from nova.events.bus.delivering import Delivering
from nova.events.bus.dispatch_dead import DeadLetters
from nova.events.bus.dispatch_record import Recorder
from nova.store.db import Database
from nova.store.subscriptions import ShardStore


class DeliveryEvents(Protocol):
    """Who wants to know (metrics). Must not block or raise."""

    def event_delivered(self, scope: Scope, topic: str, status: str) -> None:
        """``status`` is ``succeeded``, ``retried`` or ``dlq``."""
        ...

    def event_lag(self, milliseconds: float) -> None:
        """From the commit of a message to the end of its first attempt."""
        ...


class NoDeliveryEvents:
    def event_delivered(self, scope: Scope, topic: str, status: str) -> None:
        pass

    def event_lag(self, milliseconds: float) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Parts:
    """``broke`` is told of a subscription that has to be loaded anew."""

    db: Database
    shards: ShardStore
    recorder: Recorder
    delivering: Delivering
    dead_letters: DeadLetters
    events: DeliveryEvents
    clock: Clock
    broke: Callable[[str], None]
