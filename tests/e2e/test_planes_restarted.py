"""Deploys and a restart of every plane under load: no request fails, and instances stay warm unless their own plane goes."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.load import wrk
from tests.e2e.misuse import Platform, until
from tests.e2e.planes import Plane, SixPlanes
from tests.e2e.test_planes_killed import function

DEPLOYS = int(os.environ.get("NOVA_RESTART_DEPLOYS", "5"))
START_S = 180
CODE = "def handler():\n    return %d\n"


def take_over(plane: Plane) -> None:
    """The successor gets the listening sockets; the predecessor drains and ends by itself."""
    plane.succeed("--take-over")
    plane.predecessors_end()


def share_port(plane: Plane) -> None:
    """The successor listens on the same port; then the predecessor is asked to end."""
    plane.succeed()
    until(lambda: plane.ready, f"a second {plane.name} is ready", START_S)
    plane.more[-1].send_signal(signal.SIGTERM)
    plane.predecessors_end()


def again(plane: Plane) -> None:
    """Ended and started: nobody waits for it."""
    assert plane.stop() == 0
    plane.start()


RESTARTS: dict[str, Callable[[Plane], None]] = {
    "zenith": take_over,
    "nova": take_over,
    "corona": again,
    "nebula": again,
    "aurora": again,
}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="the load is wrk")
def test_no_request_fails_while_functions_are_deployed_and_planes_restarted(
    planes: SixPlanes, platform: Platform, tmp_path: Path
) -> None:
    with (
        function(platform, "kept"),
        function(platform, "steady", CODE % -1),
        wrk(planes.url, "steady", tmp_path) as totals,
    ):
        for number in range(DEPLOYS):
            changed = platform.http.patch("/functions/steady", json={"code": CODE % number})
            assert changed.status_code == 200, changed.text
            until(lambda number=number: platform.call("steady") == number, "the new code answers")
        assert planes.planes["comet-1"].stop() == 0, "one comet leaves; where the other one runs a call is certain now"
        kept = platform.call("kept")
        for name, restart in RESTARTS.items():
            restart(planes.planes[name])
            until(lambda plane=planes.planes[name]: plane.ready, f"{name} is ready", START_S)
            assert platform.call("kept") == kept, f"instances outlive a restart of {name}"
        planes.heal()
        for name in ("comet", "comet-1"):
            share_port(planes.planes[name])
        until(planes.well, "all is well", START_S)
    assert totals.requests > 100
    assert list(totals.failed) == [0, 0, 0, 0, 0], "connect, read, write, status, timeout"


def test_a_successor_that_dies_leaves_everything_as_it_was(planes: SixPlanes, platform: Platform) -> None:
    zenith = planes.planes["zenith"]
    predecessor = zenith.process
    zenith.succeed("--take-over")
    zenith.kill()
    zenith.process = zenith.more.pop()
    assert zenith.process is predecessor
    until(planes.well, "the predecessor serves on")
    take_over(zenith)
    until(planes.well, "the next one succeeds", START_S)
