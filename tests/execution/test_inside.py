"""Host paths as an isolated place sees them."""

from pathlib import Path

from nova.agent.config import WorkerLaunch
from nova.execution.inside import inside, launch_inside


def test_a_path_is_seen_where_it_is_unless_the_place_has_its_own_there() -> None:
    assert inside(Path("/usr/bin/node")) == "/usr/bin/node"
    assert inside(Path("/tmpfiles/x")) == "/tmpfiles/x"
    assert inside(Path("/tmp/checkout/bootstrap.cjs")) == "/opt/host/tmp/checkout/bootstrap.cjs"


def test_a_launch_names_the_paths_inside_and_keeps_placeholders() -> None:
    launch = launch_inside(
        WorkerLaunch("exec", argv=("/tmp/n/node", "-x", "{entry}"), script=("/usr/bin/node", "{input}"))
    )
    assert launch.argv == ("/opt/host/tmp/n/node", "-x", "{entry}")
    assert launch.script == ("/usr/bin/node", "{input}")
