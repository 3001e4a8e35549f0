"""Workflows: definitions, and the engine that runs them."""

from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.control.workflow_versions import WorkflowVersionHandlers
from nova.control.workflows import WorkflowHandlers
from nova.events.workflows import topic_waits
from nova.events.workflows.definitions import Definitions
from nova.events.workflows.engine import Engine
from nova.events.workflows.handlers_approvals import ApprovalHandlers
from nova.events.workflows.handlers_changes import RunChanges
from nova.events.workflows.handlers_runs import RunHandlers
from nova.events.workflows.runs import Runs
from nova.store.workflow_runs import KIND, RunStore
from nova.store.workflow_views import WorkflowViews
from nova.store.workflows import WorkflowStore
from nova.work.leader import Duty
from nova.work.notices import Notices
from nova.work.runner import Kind


def handlers(settings: Settings, stores: Stores) -> list[object]:
    """Of the routes that people use; in every process that answers for the control plane."""
    db, store, views = stores.db, WorkflowStore(stores.db), WorkflowViews(stores.db)
    runs = Runs(db, Notices(db), Definitions(RunStore(db)))
    return [
        WorkflowHandlers(db, store, runs),
        WorkflowVersionHandlers(db, store, settings.limits),
        RunHandlers(runs, views, store, RunChanges(stores.listener)),
        ApprovalHandlers(runs, views),
    ]


async def work(shop: Workshop) -> dict[str, Kind]:
    """Start what runs in the background; the kinds of work that nebula's runner is to claim for it."""
    settings, stores = shop.settings, shop.stores
    engine = Engine(
        stores.db,
        shop.invoker,
        shop.notices,
        stores.listener,
        max_items=lambda: settings.limits.map_items,
        max_depth=lambda: settings.workflows.max_depth,
        events=shop.metrics,
    )
    await shop.services.start(engine)
    waits = topic_waits.TopicWaits(stores.db, shop.notices, stores.listener, SYSTEM_CLOCK)
    await shop.services.start(Duty(topic_waits.DUTY, waits.lead, shop.leases))
    return {KIND: engine.kind(lambda: settings.workflows.workers)}
