"""Which backend a function gets, and the refusal by name."""

from dataclasses import replace
from typing import Any

import pytest

from nova.domain.function import EgressRule, Limits, NetworkPolicy
from nova.domain.needs import Needs
from nova.errors import NovaError
from nova.execution.backends.base import Capabilities
from nova.execution.backends.router import BackendRouter
from tests.execution.fakes import FakeBackend, make_snapshot

pytestmark = pytest.mark.anyio
OFFLINE = NetworkPolicy(isolation_mode="strict")
PLAIN = Needs("python", Limits(), OFFLINE)


class Host(FakeBackend):
    """A backend with given capabilities."""

    def __init__(self, name: str = "sandbox", **changes: Any) -> None:
        super().__init__()
        self.name = name
        self.changes = changes

    async def capabilities(self) -> Capabilities:
        full = await super().capabilities()
        enforces = {**full.enforces, **self.changes.get("enforces", {})}
        return replace(full, **{**self.changes, "enforces": enforces})


async def router(*backends: Host, **options: Any) -> BackendRouter:
    made = BackendRouter(backends, **options)
    await made.start()
    return made


async def test_auto_takes_the_first_that_fits() -> None:
    weak, strong = Host("weak", enforces={"network_rules": "no"}), Host("strong")
    routes = await router(weak, strong)
    assert await routes.select(make_snapshot(network=OFFLINE)) is weak
    assert await routes.select(make_snapshot()) is strong
    assert await routes.select(make_snapshot(backend="strong", network=OFFLINE)) is strong


@pytest.mark.parametrize(
    ("resource", "field", "snapshot"),
    [
        ("memory", "memory_mb", make_snapshot()),
        ("pids", "limits.pids", make_snapshot()),
        ("disk", "limits.tmp_mb", make_snapshot()),
        ("cpu", "limits.vcpus", make_snapshot(limits=Limits(vcpus=0.5))),
        ("net_io", "limits.net_mbps", make_snapshot(limits=Limits(net_mbps=8))),
        ("network_rules", "network_policy", make_snapshot()),
        (
            "network_rules",
            "network_policy",
            make_snapshot(network=NetworkPolicy(isolation_mode="strict", egress_rules=(EgressRule("10.0.0.1"),))),
        ),
    ],
)
async def test_what_cannot_be_enforced_is_refused_by_name(resource: str, field: str, snapshot: Any) -> None:
    """BE6: the refusal names the backend and each field."""
    routes = await router(Host(enforces={resource: "no"}))
    with pytest.raises(NovaError) as refused:
        await routes.select(snapshot)
    assert (refused.value.code, refused.value.status) == ("unsupported", 422)
    assert [error.field for error in refused.value.errors] == [field]
    assert "sandbox" in refused.value.detail


async def test_a_soft_limit_is_refused_only_when_limits_are_strict() -> None:
    soft = {"memory": "soft"}
    assert await (await router(Host(enforces=soft))).check("auto", PLAIN) == "sandbox"
    with pytest.raises(NovaError, match="memory_mb"):
        await (await router(Host(enforces=soft), strict_limits=True)).check("auto", PLAIN)


async def test_a_cpu_share_that_nobody_asked_for_is_not_refused() -> None:
    routes = await router(Host(enforces={"cpu": "no"}))
    assert await routes.check("sandbox", PLAIN) == "sandbox"


async def test_unknown_unavailable_and_unfit_backends_say_why() -> None:
    routes = await router(Host("off", available=False, reason="no user namespaces"), Host("py", runtimes={"python"}))
    with pytest.raises(NovaError, match="'docker' is not a backend"):
        await routes.check("docker", Needs("python", Limits()))
    with pytest.raises(NovaError, match="no user namespaces"):
        await routes.check("off", Needs("python", Limits()))
    with pytest.raises(NovaError, match="py does not run node"):
        await routes.check("auto", Needs("node", Limits()))


async def test_the_default_network_is_what_the_host_can_hold() -> None:
    filtering, blind = await router(Host()), await router(Host(enforces={"network_rules": "no"}))
    assert filtering.default_network("auto") == NetworkPolicy()
    assert blind.default_network("auto").offline
    strict = await router(Host(), default_isolation="strict")
    assert strict.default_network("sandbox").offline
    assert await blind.check("auto", Needs("python", Limits())) == "sandbox", "no policy: no refusal"
