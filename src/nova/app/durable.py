"""Durable executions: their record, and what resumes them."""

from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.config import Settings
from nova.events.durable.calls import DurableCallWork
from nova.events.durable.handlers import DurableHandlers
from nova.events.durable.runs import DurableRuns
from nova.store.durable import DurableStore
from nova.store.durable_rows import CALL_KIND, KIND
from nova.store.durable_waits import DurableWaits
from nova.work.runner import Kind


def handlers(settings: Settings, stores: Stores) -> list[object]:
    """Of the routes that people use; in every process that answers for the control plane."""
    store = DurableStore(stores.db)
    return [DurableHandlers(store, DurableWaits(store, stores.listener))]


async def work(shop: Workshop) -> dict[str, Kind]:
    """Start what runs in the background; the kinds of work that nebula's runner is to claim for it."""
    db, invoker, notices = shop.stores.db, shop.invoker, shop.notices
    runs = DurableRuns(db, invoker, notices, events=shop.metrics)
    calls = DurableCallWork(db, invoker, notices)

    def workers() -> int:
        return shop.settings.queue.workers

    return {KIND: runs.kind(workers), CALL_KIND: calls.kind(workers)}
