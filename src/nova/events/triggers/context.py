"""What sources get of the platform."""

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import Settings
from nova.domain.trigger import TriggerRecord
from nova.events.triggers.base import Context
from nova.security import egress


class Contexts:
    """Makes the context of each trigger's source in this process."""

    def __init__(self, settings: Settings, *, node: str = "", clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._node = node
        self._clock = clock

    def of(self, record: TriggerRecord) -> Context:
        settings = record.settings
        return Context(
            trigger_id=record.id,
            name=settings.name,
            scope=record.scope,
            window=settings.max_inflight * settings.batch_size,
            clock=self._clock,
            settings=self._settings.triggers,
            http=lambda timeout_s: egress.client(self._settings.egress, timeout_s=timeout_s),
            guard=egress.Guard(self._settings.egress.allow),
            node=self._node,
        )
