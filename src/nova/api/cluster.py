"""The cluster: the processes of the platform, and which of them is in charge of each duty. For platform administrators."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from nova.api.table import Model, Page, PageQuery, Plane, Route

NodePlane = Literal["zenith", "nova", "comet", "corona", "nebula", "aurora"]
"""``nova up``, which holds every plane, is listed once, as ``nova``."""
Standing = Literal["active", "cordoned", "draining", "gone"]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,64}$")]
LabelValue = Annotated[str, StringConstraints(max_length=256)]
MAX_LABELS = 32


class NodeQuery(PageQuery):
    state: Standing | None = None
    plane: NodePlane | None = None


class NodePatch(Model):
    """A merge patch: labels merge by key, null takes one off; a null ``state`` is ``active``, null ``labels`` are none.

    The state is this process's own and ends with it.
    """

    state: Literal["active", "cordoned", "draining"] | None = Field(
        None, description="cordoned: gets no new calls; draining: the same, until what it has is done"
    )
    labels: dict[Label, LabelValue | None] | None = None


class WarmInstances(Model):
    """Instances of one function version on a node, and how many more calls they could take at once."""

    tenant: str
    namespace: str
    function: str
    version: int
    instances: int
    free: int


class NodeLoad(Model):
    """As of the last heartbeat; null where this plane, or this kernel, does not measure it. Usages, pressures and the error
    rate are shares from 0 to 1."""

    cpu_usage: float | None = None
    memory_usage: float | None = None
    io_pressure: float | None = None
    memory_pressure: float | None = None
    inflight: int | None = None
    invocations_1m: int | None = None
    avg_latency_ms: float | None = None
    error_rate: float | None = None
    warm: list[WarmInstances] = []


class Node(Model):
    """One process of a plane. ``gone``: it has not renewed its lease, so it is dead or cut off.

    ``address`` is where other processes reach it; empty for one that nobody calls.
    """

    id: str
    plane: str
    name: str
    address: str
    state: Standing
    cpu_cores: float | None
    memory_mb: int | None
    max_vms: int | None
    active_vms: int | None
    queue_depth: int | None
    version: str | None
    arch: str | None
    backends: list[str]
    labels: dict[str, str]
    load: NodeLoad
    started_at: datetime
    last_heartbeat: datetime
    lease_until: datetime


class LeaderInfo(Model):
    """Who is in charge of a duty. ``owner`` is the id of the process's leases; ``fence`` grows with every change of hands."""

    duty: str
    owner: str
    node: str
    fence: int
    until: datetime
    acquired_at: datetime


def _route(op: str, method: str, path: str, summary: str, permission: str, **more: Any) -> Route:
    return Route(
        op=op,
        method=method,
        path=path,
        summary=summary,
        plane=Plane.CONTROL,
        permission=permission,
        resource=None,
        scoped=False,
        platform=True,
        tag="cluster",
        **more,
    )


_READ, _MANAGE = "cluster:read", "cluster:manage"
_NODE = "/cluster/nodes/{id}"

ROUTES = (
    _route(
        "node.list",
        "GET",
        "/cluster/nodes",
        "List the processes of the platform, newest first",
        _READ,
        query=NodeQuery,
        answer=Page[Node],
    ),
    _route("node.get", "GET", _NODE, "Show a process of the platform", _READ, answer=Node),
    _route(
        "node.patch",
        "PATCH",
        _NODE,
        "Cordon, drain or activate a node, or change its labels",
        _MANAGE,
        audit="node.update",
        body=NodePatch,
        answer=Node,
    ),
    _route("node.delete", "DELETE", _NODE, "Forget a node that is gone", _MANAGE, audit="node.delete", status=204),
    _route(
        "cluster.leaders",
        "GET",
        "/cluster/leaders",
        "List the duties and which process is in charge of each",
        _READ,
        answer=Page[LeaderInfo],
    ),
)
