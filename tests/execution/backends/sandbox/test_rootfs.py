"""What a root holds, as a plan."""

from pathlib import Path

from nova.execution.backends.base import Bind
from nova.execution.backends.sandbox.mounts import RootPlan
from nova.execution.backends.sandbox.rootfs import plan_root, usable_resolvers


def test_only_public_paths_of_the_host() -> None:
    plan = plan_root("x", [], resolvers=["10.1.1.1"])
    sources = {source for source, _, _ in plan.binds}
    assert "/usr" in sources
    assert not {"/", "/etc", "/var", "/home", "/root", "/dev", "/proc", "/sys", "/run"} & sources
    assert all(kind in ("ro", "dev") for _, _, kind in plan.binds)
    texts = dict(plan.files)
    assert "nameserver 10.1.1.1\n" in texts["/etc/resolv.conf"]
    assert RootPlan.of(plan.as_dict()) == plan


def test_offline_has_no_resolver() -> None:
    assert "/etc/resolv.conf" not in dict(plan_root("x", [], resolvers=None).files)


def test_tools_outside_the_system_come_once() -> None:
    tools = [Path("/opt/node/bin"), Path("/opt/node"), Path("/usr/lib/node"), Path("/opt/nodes")]
    binds = [target for _, target, _ in plan_root("x", tools, resolvers=None).binds]
    assert [target for target in binds if target.startswith("/opt")] == ["/opt/node", "/opt/nodes"]
    assert "/usr/lib/node" not in binds


def test_binds_of_a_command_may_be_writable() -> None:
    plan = plan_root(
        "x", [], resolvers=None, binds=[Bind(Path("/a"), "/in"), Bind(Path("/b"), "/out", read_only=False)]
    )
    assert plan.binds[-2:] == (("/a", "/in", "ro"), ("/b", "/out", "rw"))


def test_resolvers_that_an_instance_can_reach() -> None:
    """Its loopback is its own, link-local addresses are closed, and it has no IPv6."""
    text = "nameserver 127.0.0.53\nnameserver 169.254.169.253\nnameserver fd00::1\nnameserver 192.168.1.1\nsearch x\n"
    assert usable_resolvers(text) == ["192.168.1.1"]
    assert usable_resolvers("nameserver 127.0.0.53\n") == ["1.1.1.1", "8.8.8.8"]
