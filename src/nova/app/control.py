"""The control plane: the handlers of everything that is configured, and the platform's own pages."""

from collections.abc import Callable

from nova.api.table import routes
from nova.app import bus, durable, triggers, workflows
from nova.app.core import Known, Stores
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.control.aliases import AliasHandlers
from nova.control.apikeys import KeyHandlers
from nova.control.builds import BuildHandlers
from nova.control.code import CodeHandlers
from nova.control.deploy import Deployer, Enforcer
from nova.control.describe import DescriptionHandlers
from nova.control.functions import FunctionHandlers
from nova.control.layers import LayerHandlers
from nova.control.remount import Remounter
from nova.control.rollouts import RolloutHandlers, ShadowHandlers
from nova.control.runtimes import RuntimeHandlers
from nova.control.settings import LiveSettings, SettingsHandlers
from nova.control.state import StateHandlers
from nova.control.tenants import TenantHandlers
from nova.control.uploads import Uploads
from nova.control.versions import VersionHandlers
from nova.control.volumes import VolumeHandlers
from nova.observability.health import HealthHandlers, Planes, Pools
from nova.runtimes.registry import Runtimes
from nova.scheduling.nodes import ClusterHandlers
from nova.scheduling.schedules import ScheduleHandlers
from nova.scheduling.targets import Targets
from nova.scheduling.windows import WindowHandlers
from nova.store.layers import LayerStore
from nova.store.migrate import pending
from nova.store.nodes import NodeStore
from nova.store.references import References
from nova.store.schedules import ScheduleStore
from nova.store.shadows import ShadowStore
from nova.store.state import StateStore
from nova.store.volumes import VolumeStore
from nova.store.workflows import WorkflowStore


def control_handlers(
    settings: Settings, stores: Stores, known: Known, live: LiveSettings, runtimes: Runtimes, enforcer: Enforcer
) -> list[object]:
    functions, versions, blobs = stores.functions, stores.versions, stores.blobs
    uploads = Uploads(settings.limits)
    deployer = Deployer(stores.db, functions, versions, blobs, runtimes, enforcer)
    remounter = Remounter(deployer)
    rates = settings.rate_limit
    return [
        FunctionHandlers(
            deployer, functions, versions, uploads, References(stores.db), settings.limits, settings.functions
        ),
        CodeHandlers(deployer, functions, versions, blobs, uploads, settings.limits, settings.functions),
        VersionHandlers(deployer, functions, versions),
        AliasHandlers(deployer, functions, versions, stores.aliases),
        RolloutHandlers(stores.rollouts),
        ShadowHandlers(stores.rollouts, ShadowStore(stores.db)),
        BuildHandlers(stores.builds, functions, stores.listener),
        RuntimeHandlers(runtimes),
        DescriptionHandlers(routes()),
        SettingsHandlers(stores.db, stores.settings, live),
        KeyHandlers(stores.db, stores.keys, known.keys, known.directory, rates, SYSTEM_CLOCK),
        LayerHandlers(stores.db, LayerStore(stores.db), blobs, runtimes, uploads, settings.limits, remounter),
        VolumeHandlers(stores.db, VolumeStore(stores.db), remounter),
        StateHandlers(functions, StateStore(stores.db, lambda: settings.limits.state_mb << 20)),
        ScheduleHandlers(
            stores.db,
            ScheduleStore(stores.db),
            Targets(functions, versions, WorkflowStore(stores.db)),
            SYSTEM_CLOCK,
        ),
        WindowHandlers(functions, SYSTEM_CLOCK),
        ClusterHandlers(stores.db, NodeStore(stores.db)),
        TenantHandlers(stores.db, stores.tenants, known.directory, rates),
        *(handler for part in (bus, workflows, durable, triggers) for handler in part.handlers(settings, stores)),
    ]


def health_handlers(
    stores: Stores,
    *,
    draining: Callable[[], bool],
    planes: Planes,
    fleet: Pools | None = None,
) -> HealthHandlers:
    async def migrated() -> bool:
        return not await pending(stores.dsn)

    return HealthHandlers(
        ping=stores.db.ping, migrated=migrated, draining=draining, planes=planes, fleet=fleet, clock=SYSTEM_CLOCK
    )
