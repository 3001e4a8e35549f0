"""What nebula's background work stands on, whichever process it runs in."""

from dataclasses import dataclass

from nova.app.core import Stores
from nova.config import Settings
from nova.domain.ports import Invoker
from nova.events.accept import Queue
from nova.execution.durable import DurableCalls
from nova.execution.metrics import Metrics
from nova.service import ServiceGroup
from nova.work.leader import Leases
from nova.work.notices import Notices


@dataclass(frozen=True, slots=True)
class Workshop:
    """``queue`` accepts asynchronous calls; ``invoker`` runs calls here or on comets; ``leases``: each duty to one process;
    ``durable`` begins durable executions, if this process does."""

    settings: Settings
    stores: Stores
    metrics: Metrics
    services: ServiceGroup
    notices: Notices
    invoker: Invoker
    queue: Queue
    leases: Leases
    durable: DurableCalls | None = None
