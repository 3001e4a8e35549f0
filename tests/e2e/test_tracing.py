"""One trace through every hop: the client's header, zenith, comet, the function; and the tree that is shown of it."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.planes import SixPlanes

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
SETTINGS = "tracing:\n  enabled: true\n  exporter: stdout\n"
TELLING = "import os\ndef handler(event, context):\n    return os.environ['TRACEPARENT']\n"
HOPS = {"gateway.request", "nova.invoke", "nova.acquire", "nova.exec"}
LIMIT_S = 60


def spans_of(client: httpx.Client, trace: str) -> dict[str, dict[str, Any]]:
    """The spans by name, once every hop has told of its own."""
    deadline = time.monotonic() + LIMIT_S
    found: dict[str, dict[str, Any]] = {}
    while time.monotonic() < deadline:
        answer = client.get(f"/traces/{trace}")
        if answer.status_code == 200:
            found = {}
            todo = list(answer.json()["spans"])
            while todo:
                span = todo.pop()
                found[span["name"]] = span
                todo += span.get("children", [])
            if found.keys() >= HOPS:
                return found
        time.sleep(0.2)
    raise AssertionError(f"only {sorted(found)} after {LIMIT_S} s")


def test_one_trace_goes_through_every_process_into_the_function(tmp_path: Path) -> None:
    settings = tmp_path / "nova.yaml"
    settings.write_text(SETTINGS)
    planes = SixPlanes(tmp_path / "data")
    for plane in planes.planes.values():
        plane.argv += ["--config", str(settings)]
    with planes, httpx.Client(base_url=planes.url, timeout=120, trust_env=False) as client:
        made = client.post("/functions", json={"name": "telling", "runtime": "python", "code": TELLING})
        assert made.status_code == 201, made.text
        answer = client.post("/functions/telling/invoke", json={}, headers={"traceparent": PARENT})
        inside = answer.json()["output"]
        spans = spans_of(client, TRACE)
        chain = ["gateway.request", "nova.invoke", "nova.exec"]
        assert inside.split("-")[1:3] == [TRACE, spans["nova.exec"]["span_id"]]
        assert spans["gateway.request"]["remote_parent_id"] == "00f067aa0ba902b7"
        for outer, inner in pairwise(chain):
            assert spans[inner]["parent_id"] == spans[outer]["span_id"]
        assert (spans["gateway.request"]["plane"], spans["nova.invoke"]["plane"]) == ("zenith", "comet")
        request_id = answer.json()["request_id"]
        assert client.get(f"/traces/{request_id}").json()["trace_id"] == TRACE
