"""Triggers: what listens outside and calls in."""

from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.domain.ports import Acceptor, Invoker
from nova.events.bus.publish import TopicPublisher
from nova.events.triggers.context import Contexts
from nova.events.triggers.handlers import TriggerHandlers
from nova.events.triggers.runtime import Triggers
from nova.events.triggers.targets import Ports
from nova.events.triggers.webhook import Desk
from nova.events.workflows.definitions import Definitions
from nova.events.workflows.runs import Runs
from nova.execution.metrics import Metrics
from nova.service import ServiceGroup
from nova.store.triggers import TriggerStore
from nova.store.workflow_runs import RunStore
from nova.work.membership import node_name
from nova.work.notices import Notices
from nova.work.runner import Kind


def handlers(settings: Settings, stores: Stores) -> list[object]:
    """Of the routes that people use; in every process that answers for the control plane."""
    return [TriggerHandlers(stores.db, TriggerStore(stores.db), Contexts(settings), SYSTEM_CLOCK)]


async def work(shop: Workshop) -> dict[str, Kind]:
    """Start what runs in the background; the kinds of work that nebula's runner is to claim for it."""
    stores, settings = shop.stores, shop.settings
    publisher = await shop.services.start(
        TopicPublisher(stores.db, shop.notices, max_hops=lambda: settings.events.max_hops)
    )
    starter = Runs(stores.db, shop.notices, Definitions(RunStore(stores.db)))
    await shop.services.start(
        Triggers(
            stores.db,
            stores.listener,
            shop.leases,
            Ports(shop.invoker, publisher, starter),
            Contexts(settings, node=node_name(settings.cluster.node_id)),
            events=shop.metrics,
        )
    )
    return {}


async def hooks(
    settings: Settings, stores: Stores, services: ServiceGroup, invoker: Invoker, acceptor: Acceptor, metrics: Metrics
) -> Desk:
    """What answers under ``/hooks``, in every process that clients speak to."""
    notices = await services.start(Notices(stores.db))
    publisher = await services.start(TopicPublisher(stores.db, notices, max_hops=lambda: settings.events.max_hops))
    starter = Runs(stores.db, notices, Definitions(RunStore(stores.db)))
    return await services.start(
        Desk(
            TriggerStore(stores.db),
            stores.listener,
            invoker,
            acceptor,
            settings.limits,
            publisher=publisher,
            starter=starter,
            events=metrics,
        )
    )
