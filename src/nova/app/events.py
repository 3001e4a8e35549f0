"""Asynchronous calls: the end of the queue that accepts, and the end that works."""

from nova.app import bus, durable, triggers, workflows
from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.clock import SYSTEM_CLOCK
from nova.events.accept import Queue
from nova.events.accepting import AcceptHandlers
from nova.events.asyncs import AsyncHandlers
from nova.events.deliveries import Deliveries
from nova.events.envelope import KIND as DELIVERY
from nova.events.jobs import AsyncJobs
from nova.events.waiting import Endings
from nova.events.webhook_secrets import WebhookSecrets
from nova.events.webhooks import WebhookSender
from nova.execution.metrics import Metrics
from nova.security import egress
from nova.service import ServiceGroup
from nova.store.asyncs import KIND
from nova.store.durable_rows import KIND as DURABLE
from nova.store.jobs import JobStore
from nova.work.handover import Handover
from nova.work.notices import Notices
from nova.work.runner import Runner

_WEBHOOK_TIMEOUT_S = 30.0


class Accepting:
    """``queue`` is the Acceptor of a process."""

    def __init__(self, stores: Stores, metrics: Metrics) -> None:
        self._stores = stores
        self.notices = Notices(stores.db)
        self.queue = Queue(stores.db, self.notices, events=metrics)
        self._endings = Endings(stores.listener)

    async def start(self, services: ServiceGroup) -> None:
        await services.start(self.notices)
        await services.start(self.queue)

    def handlers(self) -> list[object]:
        stores = self._stores
        return [AcceptHandlers(self.queue), AsyncHandlers(stores.db, self._endings, WebhookSecrets(stores.db))]


async def work_off(shop: Workshop) -> None:
    """Do nebula's work: run the jobs of the queue, send what they ended with to where it belongs, and what else waits."""
    settings, stores, services = shop.settings, shop.stores, shop.services
    jobs = await services.start(AsyncJobs(JobStore(stores.db), shop.invoker, shop.notices, events=shop.metrics))
    sender = await services.start(
        WebhookSender(egress.client(settings.egress, timeout_s=_WEBHOOK_TIMEOUT_S), SYSTEM_CLOCK)
    )
    workflow_starter = bus.starter(stores, shop.notices)
    deliveries = Deliveries(
        stores.db,
        sender,
        WebhookSecrets(stores.db),
        workflow_starter,
        events=shop.metrics,
        max_hops=lambda: settings.events.max_hops,
    )
    kinds = {KIND: jobs.kind(lambda: settings.queue.workers), DELIVERY: deliveries.kind()}
    for part in (bus, workflows, durable, triggers):
        kinds |= await part.work(shop)
    runner = await services.start(
        Runner(
            stores.db,
            stores.listener,
            kinds,
            lease_s=settings.queue.lease,
            batch=settings.queue.batch,
            grace_s=settings.daemon.drain_s,
        )
    )
    shop.queue.hand_to(Handover(runner.lane(KIND), runner.queue.owner, settings.queue.lease))
    if shop.durable is not None:
        shop.durable.hand_to(Handover(runner.lane(DURABLE), runner.queue.owner, settings.queue.lease))
