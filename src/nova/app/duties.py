"""Duties of the background planes: each is done by one process of all that could."""

from nova.app.core import Stores
from nova.app.process import Process
from nova.clock import SYSTEM_CLOCK
from nova.domain.ports import Scaler
from nova.execution.metrics import Metrics
from nova.observability.retention import Retention, rules
from nova.observability.rollup import Rollup
from nova.scheduling.firing import Firing
from nova.scheduling.replicas import Replicas
from nova.scheduling.rollouts import Rollouts
from nova.store.series import SeriesStore
from nova.work.leader import Duty, Leases
from nova.work.membership import node_name


async def open_leases(process: Process, stores: Stores) -> Leases:
    name = node_name(process.settings.cluster.node_id)
    return await process.services.start(Leases(stores.dsn, stores.listener, node=name))


async def schedule(process: Process, stores: Stores, leases: Leases, scaler: Scaler, metrics: Metrics) -> None:
    """Corona's: fire schedules, keep instances ready, move rollouts."""
    lookahead_s = process.settings.schedules.lookahead
    firing = Firing(stores.db, stores.listener, SYSTEM_CLOCK, lookahead_s=lookahead_s, events=metrics)
    await process.services.start(Duty("schedules", firing.lead, leases))
    await process.services.start(Duty("replicas", Replicas(stores.db, scaler, SYSTEM_CLOCK).lead, leases))
    await process.services.start(Duty("rollouts", Rollouts(stores.rollouts, SYSTEM_CLOCK).lead, leases))


async def observe(process: Process, stores: Stores, leases: Leases, metrics: Metrics) -> None:
    """Aurora's: time series, and what is past its retention."""
    settings = process.settings
    kept = rules(settings, stores.db)
    retention = Retention(kept, stores.invocations, settings, metrics.rows_deleted)
    await process.services.start(Duty("rollup", Rollup(SeriesStore(stores.db)).lead, leases))
    await process.services.start(Duty("retention", retention.lead, leases))
