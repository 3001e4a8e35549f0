"""The event bus: topics, what is published to them, and who gets it."""

from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.events.bus import outbox
from nova.events.bus.browse import Arrivals, BrowseHandlers
from nova.events.bus.publish import TopicPublisher
from nova.events.bus.publishing import PublishHandlers
from nova.events.bus.topics import TopicHandlers
from nova.store.bus_outbox import BusOutboxStore
from nova.store.topics import TopicStore
from nova.work.leader import Duty
from nova.work.notices import Notices
from nova.work.runner import Kind


def handlers(settings: Settings, stores: Stores) -> list[object]:
    """Of the routes that people use; in every process that answers for the control plane."""
    db, topics = stores.db, TopicStore(stores.db)
    publisher = TopicPublisher(db, Notices(db))
    return [
        TopicHandlers(db, topics),
        PublishHandlers(db, publisher, topics, BusOutboxStore(db), settings.limits, SYSTEM_CLOCK),
        BrowseHandlers(db, topics, Arrivals(stores.listener)),
    ]


async def work(shop: Workshop) -> dict[str, Kind]:
    """Start what runs in the background; the kinds of work that nebula's runner is to claim for it."""
    stores = shop.stores
    relay = outbox.Relay(stores.db, shop.notices, stores.listener)
    await shop.services.start(Duty(outbox.DUTY, relay.lead, shop.leases))
    return {}
