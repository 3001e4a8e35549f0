"""``comet``: the execution plane as a process of its own. It is spoken to over gRPC only."""

import structlog

from nova.app.core import open_known, open_settings, open_stores
from nova.app.events import Accepting
from nova.app.execution import ExecutionPlane
from nova.app.home import take_home
from nova.app.process import Process
from nova.app.rpc import serve_execution
from nova.execution.metrics import Metrics

log = structlog.get_logger(__name__)


class Comet(Process):
    async def compose(self) -> None:
        stores = await open_stores(self, alone=False)
        await open_settings(self, stores)
        home = take_home(self.settings.data_dir)
        self.services.callback(home.release)
        self.say("preparing the sandbox")
        metrics = Metrics(self.settings.metrics)
        execution = ExecutionPlane(self.settings, stores, metrics, home.path, home.place)
        await execution.start(self.services)
        known = await open_known(self, stores)
        accepting = Accepting(stores, metrics)
        await accepting.start(self.services)
        execution.guests.acceptor = accepting.queue
        address = await serve_execution(self, stores, known, execution, accepting, metrics)
        log.info("ready", plane="comet", address=address)
