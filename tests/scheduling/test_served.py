"""Schedules and kept instances on a real server: everything from the API to the sandbox."""

import time
from collections.abc import Callable
from typing import Any

from nova.client import Client
from tests.e2e.server import NovaServer

ECHO = "def handler(event, context):\n    return event\n"


def until(read: Callable[[], Any]) -> Any:
    """What ``read`` returns as soon as that is something."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := read():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def create(client: Client, name: str, **fields: Any) -> None:
    client.call("function.create", body={"name": name, "runtime": "python", "code": ECHO, **fields})


def test_a_schedule_calls_its_function_or_runs_its_workflow(nova_server: NovaServer) -> None:
    with nova_server.client() as client:
        create(client, "ticked")
        nodes = [{"node_key": "told", "node_type": "function", "function_name": "ticked"}]
        client.call("workflow.create", body={"name": "ticked"})
        client.call("workflow.version.create", {"name": "ticked"}, body={"nodes": nodes})
        fields = {"cron_expression": "@every 1s", "name": "each", "input": {"n": 1}}
        other = client.call("workflow.schedule.create", {"name": "ticked"}, body=fields)
        body = {"cron_expression": "@every 1s", "name": "tick", "overlap_policy": "allow"}
        made = client.call("function.schedule.create", {"name": "ticked"}, body=body)
        runs = {"id": made["id"]}

        def succeeded() -> Any:
            items = client.call("schedule.runs", runs)["items"]
            return [run for run in items if run["outcome"] == "succeeded"]

        run = until(succeeded)[-1]
        job = client.call("async.get", {"id": run["invocation_id"]})
        assert job["output"]["type"] == "nova.schedule.fired"
        assert job["output"]["subject"] == "tick"

        def ended() -> Any:
            items = client.call("schedule.runs", {"id": other["id"]})["items"]
            return [run for run in items if run["outcome"] == "succeeded"]

        found = client.call("run.get", {"name": "ticked", "id": until(ended)[-1]["run_id"]})
        assert (found["output"], found["source"]) == ({"told": {"n": 1}}, "schedule:each")
        client.call("workflow.delete", {"name": "ticked"}, {"cancel_runs": True})
        client.call("function.delete", {"name": "ticked"})
        assert client.call("schedule.list", query={"target": "ticked"})["items"] == []


def test_min_replicas_stand_ready_before_the_first_call(nova_server: NovaServer) -> None:
    with nova_server.client() as client:
        create(client, "eager", min_replicas=2)
        try:

            def ready() -> bool:
                pools = client.call("stats.get")["pools"]
                return any(p["function"] == "eager" and p["idle"] == 2 for p in pools)

            until(ready)
            assert client.invoke("eager", b"{}").cold_start is False
        finally:
            client.call("function.delete", {"name": "eager"})
