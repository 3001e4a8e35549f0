"""The event bus: topics, what is published to them, and who gets it."""

from functools import partial

import httpx

from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.events.bus import outbox
from nova.events.bus.browse import Arrivals, BrowseHandlers
from nova.events.bus.delivering import Delivering
from nova.events.bus.dispatch import Dispatcher
from nova.events.bus.publish import TopicPublisher
from nova.events.bus.publishing import PublishHandlers
from nova.events.bus.replaying import DeliveryHandlers
from nova.events.bus.subscriptions import SubscriptionHandlers
from nova.events.bus.topics import TopicHandlers
from nova.events.webhooks import TIMEOUT_S
from nova.events.workflows.definitions import Definitions
from nova.events.workflows.runs import Runs
from nova.security import egress
from nova.store.bus_outbox import BusOutboxStore
from nova.store.topics import TopicStore
from nova.store.workflow_runs import RunStore
from nova.work.leader import Duty
from nova.work.notices import Notices
from nova.work.runner import Kind


def handlers(settings: Settings, stores: Stores) -> list[object]:
    """Of the routes that people use; in every process that answers for the control plane."""
    db, topics = stores.db, TopicStore(stores.db)
    publisher = TopicPublisher(db, Notices(db), max_hops=lambda: settings.events.max_hops)
    return [
        TopicHandlers(db, topics),
        PublishHandlers(db, publisher, topics, BusOutboxStore(db), settings.limits, SYSTEM_CLOCK),
        BrowseHandlers(db, topics, Arrivals(stores.listener)),
        SubscriptionHandlers(db, topics, stores.functions, stores.versions, SYSTEM_CLOCK),
        DeliveryHandlers(db, topics),
    ]


async def work(shop: Workshop) -> dict[str, Kind]:
    """Start what runs in the background; the kinds of work that nebula's runner is to claim for it."""
    stores = shop.stores
    relay = outbox.Relay(stores.db, shop.notices, stores.listener)
    await shop.services.start(Duty(outbox.DUTY, relay.lead, shop.leases))
    await _deliver(shop)
    return {}


def webhook_client(settings: Settings) -> httpx.AsyncClient:
    return egress.client(settings.egress, timeout_s=TIMEOUT_S)


def starter(stores: Stores, notices: Notices | None = None) -> Runs:
    """Starts the workflows that messages are for."""
    return Runs(stores.db, notices or Notices(stores.db), Definitions(RunStore(stores.db)))


async def _deliver(shop: Workshop) -> None:
    """What is published reaches its subscribers."""
    stores, services = shop.stores, shop.services
    publisher = await services.start(
        TopicPublisher(stores.db, shop.notices, max_hops=lambda: shop.settings.events.max_hops)
    )
    delivering = Delivering(
        shop.invoker, partial(webhook_client, shop.settings), SYSTEM_CLOCK, workflows=starter(stores, shop.notices)
    )
    await services.start(
        Dispatcher(stores.db, stores.listener, shop.leases, delivering, publisher=publisher, events=shop.metrics)
    )
