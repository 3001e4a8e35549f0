"""A comet that stops answering without closing anything (SIGSTOP), and comes back (SIGCONT)."""

import signal
import threading
import time

import httpx

from tests.e2e.load import load
from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.planes import SixPlanes
from tests.e2e.test_planes_killed import function

CALLERS = 4
DEADLINE_S = 4
SLACK_S = 20
"""What a busy machine may add; the handlers take longer."""


def test_a_stopped_comet_is_noticed_and_taken_up_again(planes: SixPlanes, platform: Platform) -> None:
    """Calls in flight end at their deadline; later ones go elsewhere; afterwards it serves as before."""
    held: list[tuple[httpx.Response, float]] = []

    def call_long(name: str) -> None:
        with platform_at(planes.url) as own:
            began = time.monotonic()
            answer = own.http.post(f"/functions/{name}/invoke", json=60, headers={"x-nova-timeout-s": str(DEADLINE_S)})
            held.append((answer, time.monotonic() - began))

    names = [f"long-{number}" for number in range(4)]  # cold functions spread over both comets
    with function(platform, "steady"):
        for name in names:
            platform.deploy(name, "import time\ndef handler(seconds):\n    time.sleep(seconds or 0)\n    return 1\n")
        callers = [threading.Thread(target=call_long, args=(name,)) for name in names]
        with load(planes.url, "steady", callers=CALLERS, event=0.01) as running:
            for caller in callers:
                caller.start()
            until(lambda: len(running.calls) > 50, "calls run")
            until(lambda: platform.http.get("/stats").json()["inflight"] >= len(names), "the long calls run")
            planes.planes["comet"].send(signal.SIGSTOP)
            until(lambda: planes.health()["comet"] == "degraded", "it is noticed")
            noticed = time.monotonic()
            until(lambda: running.well_since(noticed) > 100, "calls go on elsewhere")
            for caller in callers:
                caller.join()
            later = [call for call in running.calls if call.began > noticed]
            assert all(call.well for call in later), [call for call in later if not call.well]
            planes.planes["comet"].send(signal.SIGCONT)
            until(lambda: planes.health()["comet"] == "ok", "it is back")
        assert set(running.codes) <= {"timeout", "instance_lost"}, running.codes
        assert len(running.failed) <= CALLERS, "of each connection at most the call that it had there"
    for answer, seconds in held:
        assert (answer.status_code, answer.json()["code"]) == (504, "timeout"), answer.text
        assert DEADLINE_S - 0.1 < seconds < DEADLINE_S + SLACK_S, seconds
    for name in names:
        assert platform.call(name) == 1, "whichever comet it is on"
        platform.delete(name)
