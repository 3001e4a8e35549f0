"""Comets as seen from another process."""

from collections.abc import Sequence

from nova.app.core import Stores, Trust
from nova.app.process import Process
from nova.rpc.comets import Comets
from nova.rpc.remote import CometConnection
from nova.store.nodes import NodeStore
from nova.work.membership import node_name


async def open_comets(process: Process, stores: Stores, trust: Trust, addresses: Sequence[str]) -> Comets:
    """Connections to the comets that are named, or to those that are on the list of nodes when none is."""
    cluster = process.settings.cluster
    return await process.services.start(
        Comets(
            lambda address: CometConnection(address, trust.token, trust.assertions),
            addresses=addresses,
            nodes=NodeStore(stores.db),
            notifications=stores.listener,
            name=node_name(cluster.node_id),
            zone=cluster.labels.get("zone", ""),
        )
    )
