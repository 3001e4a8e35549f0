"""Workflows of real functions, on both shapes of the platform: what each kind of node does, and how runs are steered."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

STEP = """
import time
calls = {}
def handler(event):
    key = event.get("key", "")
    calls[key] = calls.get(key, 0) + 1
    time.sleep(event.get("sleep", 0))
    if calls[key] <= event.get("failures", 0) or "error" in event:
        raise type(event.get("error", "Flaky"), (Exception,), {})("as asked")
    return event["give"] if "give" in event else {**event, "calls": calls[key]}
"""
ENDED = ("succeeded", "failed", "cancelled", "timed_out")


class Bench:
    """A platform with the functions ``wf-step`` (one instance, so that it can count) and ``wf-many``."""

    def __init__(self, platform: Platform) -> None:
        self.http = platform.http
        self.platform = platform
        self._made: list[str] = []

    def __enter__(self) -> "Bench":
        self.platform.deploy("wf-step", STEP, max_replicas=1, timeout_s=60)
        self.platform.deploy("wf-many", STEP, timeout_s=60)
        self.platform.call("wf-step", {"key": "warm"})
        return self

    def __exit__(self, *exc: object) -> None:
        for name in self._made:
            self.http.delete(f"/workflows/{name}", params={"cancel_runs": "true"})
        for name in ("wf-step", "wf-many"):
            self.platform.delete(name)

    def workflow(self, name: str, nodes: list[Any], edges: Any = (), output: Any = None, **settings: Any) -> str:
        """Made and published; ``edges`` as pairs of keys, or as they are."""
        answer = self.http.post("/workflows", json={"name": name, **settings})
        assert answer.status_code == 201, answer.text
        self._made.append(name)
        self.publish(name, nodes, edges, output)
        return name

    @contextmanager
    def key(self, name: str, role: str) -> Iterator[dict[str, str]]:
        """The headers of somebody else."""
        made = self.http.post("/apikeys", json={"name": name, "permissions": [{"role": role}]})
        assert made.status_code == 201, made.text
        headers = {"X-API-Key": made.json()["key"]}
        try:
            until(lambda: self.http.get("/workflows", headers=headers).status_code == 200, "every door knows the key")
            yield headers
        finally:
            self.http.delete(f"/apikeys/{name}")

    def publish(self, name: str, nodes: list[Any], edges: Any = (), output: Any = None) -> None:
        pairs = [{"from": edge[0], "to": edge[1]} if isinstance(edge, tuple) else edge for edge in edges]
        definition = {"nodes": nodes, "edges": pairs} | ({} if output is None else {"output": output})
        answer = self.http.post(f"/workflows/{name}/versions", json=definition)
        assert answer.status_code == 201, answer.text

    def start(self, workflow: str, value: Any = None, wait_s: float = 0, **members: Any) -> dict[str, Any]:
        body = members | ({} if value is None else {"input": value})
        answer = self.http.post(f"/workflows/{workflow}/runs", json=body, params={"wait_s": wait_s})
        assert answer.status_code in (200, 201), answer.text
        found: dict[str, Any] = answer.json()
        assert answer.headers["location"] == f"/workflows/{workflow}/runs/{found['id']}"
        return found

    def run(self, workflow: str, value: Any = None, **members: Any) -> dict[str, Any]:
        """A run at its end."""
        found = self.start(workflow, value, 30, **members)
        return found if found["status"] in ENDED else self.ended(found)

    def of(self, run: dict[str, Any], wait_s: float = 0) -> dict[str, Any]:
        path = f"/workflows/{run['workflow']}/runs/{run['id']}"
        found: dict[str, Any] = self.http.get(path, params={"wait_s": wait_s}).json()
        return found

    def post(self, run: dict[str, Any], verb: str, body: Any = None) -> httpx.Response:
        return self.http.post(f"/workflows/{run['workflow']}/runs/{run['id']}/{verb}", json=body or {})

    def ended(self, run: dict[str, Any]) -> dict[str, Any]:
        until(lambda: self.of(run, 30)["status"] in ENDED, "the run ends", 90)
        return self.of(run)

    def reached(self, run: dict[str, Any], key: str, status: str) -> None:
        until(lambda: node(self.of(run), key)["status"] == status, f"{key} is {status}")


def node(run: dict[str, Any], key: str) -> dict[str, Any]:
    (found,) = [one for one in run["nodes"] if one["node_key"] == key]
    return dict(found)


def states(run: dict[str, Any]) -> dict[str, str]:
    return {one["node_key"]: one["status"] for one in run["nodes"]}


def step(key: str, mapping: Any = None, name: str = "wf-step", **more: Any) -> dict[str, Any]:
    made = {"node_key": key, "node_type": "function", "function_name": name, **more}
    return made if mapping is None else {**made, "input_mapping": mapping}


@pytest.fixture(scope="module")
def bench(nova_server: NovaServer) -> Iterator[Bench]:
    with platform_at(nova_server.url) as platform, Bench(platform) as bench:
        yield bench


def test_a_chain_maps_chooses_and_joins(bench: Bench) -> None:
    """EV13: mappings shape inputs and the output, a choice takes one way, a join knows which were not taken."""
    small_or_large = [
        {"when": {"all": [{"path": "$.nodes.sum.output.total", "op": "gt", "value": 10}]}, "goto": "large"},
    ]
    bench.workflow(
        "shapes",
        [
            step("sum", {"give": {"total": "$.input.n", "text": "$$.n"}}),
            {"node_key": "size", "node_type": "choice", "branches": small_or_large, "default": "small"},
            {"node_key": "large", "node_type": "pass", "value": {"size": "large"}},
            {"node_key": "small", "node_type": "pass", "value": {"size": "small"}},
            step("last", {"give": {"n": "$.nodes.sum.output.total"}}, output_mapping={"n": "$.output.n"}),
        ],
        [("sum", "size"), ("large", "last"), ("small", "last")],
        {"n": "$.nodes.last.output.n", "text": "$.nodes.sum.output.text"},
    )
    run = bench.run("shapes", {"n": 12})
    assert (run["status"], run["output"]) == ("succeeded", {"n": 12, "text": "$.n"})
    assert states(run) == {
        "sum": "succeeded",
        "size": "succeeded",
        "large": "succeeded",
        "small": "skipped",
        "last": "succeeded",
    }
    assert states(bench.run("shapes", {"n": 2}))["large"] == "skipped"
    told = node(run, "sum")
    assert told["input"] == {"give": {"total": 12, "text": "$.n"}}
    (attempt,) = told["attempts"]
    assert (attempt["no"], attempt["error"]) == (1, None)
    record = f"/invocations/{attempt['request_id']}"
    until(lambda: bench.http.get(record).status_code == 200, "its call has a record")
    call = bench.http.get(record).json()
    assert (call["function"], call["trigger"]) == ("wf-step", "workflow")


def test_a_map_keeps_order_and_its_bound_and_tells_of_each_item(bench: Bench) -> None:
    """EV13: a map of more items than it may run at once."""
    each = {"node_type": "function", "function_name": "wf-many", "input_mapping": {"give": "$.item", "sleep": 0.1}}
    bench.workflow(
        "mapped", [{"node_key": "each", "node_type": "map", "items": "$.input.list", "max_concurrency": 3, "do": each}]
    )
    run = bench.run("mapped", {"list": list(range(8))})
    assert (run["status"], run["output"]) == ("succeeded", {"each": list(range(8))})
    assert node(run, "each")["items"] == {"total": 8, "succeeded": 8, "failed": 0, "running": 0}
    path = f"/workflows/mapped/runs/{run['id']}/nodes/each/items"
    page = bench.http.get(path, params={"limit": 5}).json()
    rest = bench.http.get(path, params={"cursor": page["next_cursor"], "status": "succeeded"}).json()
    items = [*page["items"], *rest["items"]]
    assert [(item["item"], item["output"]) for item in items] == [(n, n) for n in range(8)]
    times = [(datetime.fromisoformat(a["started_at"]), a["duration_ms"]) for item in items for a in item["attempts"]]
    spans = [(start, start + timedelta(milliseconds=took)) for start, took in times]
    assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) <= 3
    assert bench.http.get(path, params={"status": "failed"}).json()["items"] == []
    assert bench.http.get(path, params={"status": "lost"}).status_code == 400
    assert bench.http.get(f"/workflows/mapped/runs/{run['id']}/nodes/none/items").status_code == 404


def test_branches_run_side_by_side(bench: Bench) -> None:
    branch = [{"nodes": [step("work", {"give": n, "sleep": 0.2}, "wf-many")]} for n in (1, 2)]
    bench.workflow("sides", [{"node_key": "both", "node_type": "parallel", "branches": branch}])
    run = bench.run("sides")
    assert run["status"] == "succeeded", run
    assert [one["node_key"] for one in run["nodes"]] == ["both", "both/0/work", "both/1/work"]
    first, second = (node(run, f"both/{n}/work") for n in (0, 1))
    assert first["started_at"] < second["finished_at"]
    assert second["started_at"] < first["finished_at"]


def test_failures_are_retried_then_caught_or_the_runs_own(bench: Bench) -> None:
    """EV13, EV15: after a failure without catch nothing new starts, and what was done is undone backwards."""
    patient = {"max_attempts": 3, "base_ms": 50, "jitter": False}
    bench.workflow("patient", [step("flaky", {"key": "$.run.id", "failures": 2}, retry_policy=patient)])
    run = bench.run("patient")
    assert run["status"] == "succeeded", run
    told = node(run, "flaky")
    assert (told["attempt"], [a["error"] and a["error"]["type"] for a in told["attempts"]]) == (
        3,
        ["Flaky", "Flaky", None],
    )
    starts = [datetime.fromisoformat(a["started_at"]) for a in told["attempts"]]
    assert starts[1] - starts[0] >= timedelta(milliseconds=50)
    assert starts[2] - starts[1] >= timedelta(milliseconds=100)

    caught = [{"on": ["Declined"], "goto": "sorry"}]
    bench.workflow(
        "caught",
        [
            step("pay", {"error": "$.input.error"}, catch=caught),
            step("thanks", {"give": 1}),
            {"node_key": "sorry", "node_type": "pass", "value": {"because": "$.error.type"}},
        ],
        [("pay", "thanks")],
    )
    run = bench.run("caught", {"error": "Declined"})
    assert (run["status"], states(run)["thanks"], run["output"]) == (
        "succeeded",
        "skipped",
        {"sorry": {"because": "Declined"}},
    )
    run = bench.run("caught", {"error": "Burnt"})
    assert (run["status"], run["error"]) == ("failed", {"type": "Burnt", "message": "as asked", "node_key": "pay"})
    assert states(run) == {"pay": "failed", "thanks": "skipped", "sorry": "skipped"}


def test_a_saga_is_undone_backwards(bench: Bench) -> None:
    def undo(key: str) -> dict[str, Any]:
        return {"function_name": "wf-step", "input_mapping": {"give": f"$.nodes.{key}.output"}}

    nodes = [
        step("reserve", {"give": "R"}, compensate=undo("reserve")),
        step("charge", {"give": "C"}, compensate=undo("charge")),
        step("ship", {"error": "Undeliverable"}, compensate=undo("ship")),
    ]
    bench.workflow("saga", nodes, [("reserve", "charge"), ("charge", "ship")])
    run = bench.run("saga")
    assert (run["status"], run["error"]["type"]) == ("failed", "Undeliverable")
    assert [node(run, key)["compensation"] for key in ("reserve", "charge", "ship")] == [
        "succeeded",
        "succeeded",
        None,
    ]
    undone = {
        key: next(a for a in node(run, key)["attempts"] if a["purpose"] == "compensation")
        for key in ("reserve", "charge")
    }
    assert undone["charge"]["started_at"] < undone["reserve"]["started_at"]


def test_waiting_for_time_events_and_people(bench: Bench) -> None:
    """EV13: a timer, an event that was sent before anybody waited for it, a message of a topic, and an answer."""
    bench.http.post("/topics", json={"name": "wf-parcels"}).raise_for_status()
    mine = [{"exact": {"/run": "$.run.id"}}]
    bench.workflow("parcel", [{"node_key": "sent", "node_type": "wait_event", "topic": "wf-parcels", "filters": mine}])
    waiting = [bench.start("parcel") for _ in range(2)]
    for no, run in enumerate(waiting):
        message = {"payload": {"run": run["id"], "no": no}}
        bench.http.post("/topics/wf-parcels/publish", json=message).raise_for_status()
    for no, run in enumerate(waiting):
        assert bench.ended(run)["output"]["sent"]["data"] == {"run": run["id"], "no": no}
    bench.http.delete("/topics/wf-parcels").raise_for_status()
    bench.workflow(
        "waits",
        [
            {"node_key": "nap", "node_type": "wait", "seconds": 0.3},
            {"node_key": "mail", "node_type": "wait_event", "key": "mail", "timeout_s": 60},
        ],
        [("nap", "mail")],
    )
    run = bench.start("waits")
    sent = bench.post(run, "events/mail", {"payload": {"from": "ada"}})
    assert (sent.status_code, sent.json()) == (202, {"run": run["id"], "key": "mail"})
    done = bench.ended(run)
    assert (done["status"], done["output"]) == ("succeeded", {"mail": {"from": "ada"}})
    nap = node(done, "nap")
    assert nap["duration_ms"] >= 300, nap
    bench.publish("waits", [{"node_key": "mail", "node_type": "wait_event", "key": "mail", "timeout_s": 0.2}])
    late = bench.run("waits")
    assert (late["status"], node(late, "mail")["error"]["type"]) == ("failed", "Nova.Timeout")


def test_people_answer_once(bench: Bench) -> None:
    form = {"type": "object", "required": ["note"], "properties": {"note": {"type": "string", "maxLength": 5}}}
    ask = {"title": "Pay?", "form_schema": form, "approvers": ["operator"]}
    bench.workflow(
        "asked",
        [
            {"node_key": "ask", "node_type": "wait_event", "approval": ask, "timeout_s": 600},
            {"node_key": "after", "node_type": "pass", "value": {"note": "$.nodes.ask.output.payload.note"}},
        ],
        [("ask", "after")],
    )

    def question(run: dict[str, Any]) -> dict[str, Any]:
        bench.reached(run, "ask", "waiting")
        (found,) = bench.http.get("/approvals", params={"status": "pending", "run": run["id"]}).json()["items"]
        assert node(bench.of(run), "ask")["approval_id"] == found["id"]
        return dict(found)

    run = bench.start("asked", {"amount": 7})
    asked = question(run)
    assert (asked["title"], asked["workflow"], asked["approvers"]) == ("Pay?", "asked", ["operator"])
    for payload, field in (({}, "payload"), ({"note": "too long"}, "payload.note")):
        refused = bench.http.post(f"/approvals/{asked['id']}/approve", json={"payload": payload})
        assert refused.status_code == 400, refused.text
        assert [error["field"] for error in refused.json()["errors"]] == [field]
    answer = bench.http.post(
        f"/approvals/{asked['id']}/approve", json={"comment": "why not", "payload": {"note": "ok"}}
    )
    assert (answer.status_code, answer.json()["status"]) == (200, "approved"), answer.text
    assert (answer.json()["decided_by"], answer.json()["comment"]) == ("operator", "why not")
    done = bench.ended(run)
    assert (done["status"], done["output"]) == ("succeeded", {"after": {"note": "ok"}})
    again = bench.http.post(f"/approvals/{asked['id']}/reject", json={})
    assert (again.status_code, again.json()["code"]) == (409, "invalid_state")

    run = bench.start("asked")
    rejected = bench.http.post(f"/approvals/{question(run)['id']}/reject", json={"comment": "no"})
    assert rejected.json()["status"] == "rejected"
    done = bench.ended(run)
    assert (done["status"], node(done, "ask")["error"]["type"]) == ("failed", "Nova.Rejected")

    bench.publish(
        "asked",
        [{"node_key": "ask", "node_type": "wait_event", "approval": {"title": "x", "approvers": ["key:ada"]}}],
    )
    run, other = bench.start("asked", {"secret": 1}), bench.start("asked")
    asked = question(run)
    refused = bench.http.post(f"/approvals/{asked['id']}/approve", json={})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    with bench.key("bob", "viewer") as bob:
        path = f"/workflows/asked/runs/{run['id']}"
        seen = bench.http.get(path, headers=bob).json()
        assert (seen["id"], seen["input"], node(seen, "ask")["input"]) == (run["id"], None, None)
        for forbidden in ("/workflows/asked/runs", path + "/cancel", f"/approvals/{asked['id']}/approve"):
            assert bench.http.post(forbidden, json={}, headers=bob).status_code == 403
    with bench.key("ada", "operator") as ada:
        assert bench.http.get(f"/approvals/{asked['id']}", headers=ada).json()["input"] == {"secret": 1}
        agreed = bench.http.post(f"/approvals/{asked['id']}/approve", json={}, headers=ada)
        assert (agreed.status_code, agreed.json()["decided_by"]) == (200, "key:ada")
    assert bench.ended(run)["status"] == "succeeded"
    asked = question(other)
    assert bench.post(other, "cancel").status_code == 200
    bench.ended(other)
    assert bench.http.get(f"/approvals/{asked['id']}").json()["status"] == "cancelled"


def test_a_workflow_in_a_workflow(bench: Bench) -> None:
    bench.workflow("inner", [step("double", {"give": {"n": "$.input.n"}})], output={"n": "$.nodes.double.output.n"})
    bench.workflow("outer", [{"node_key": "sub", "node_type": "sub_workflow", "workflow_name": "inner"}])
    run = bench.run("outer", {"n": 4})
    assert (run["status"], run["output"]) == ("succeeded", {"sub": {"n": 4}})
    child = bench.http.get(f"/runs/{node(run, 'sub')['child_run_id']}").json()
    assert (child["workflow"], child["parent_run_id"], child["status"]) == ("inner", run["id"], "succeeded")
    runs = bench.http.get("/runs", params={"workflow": "inner", "status": "succeeded,failed"}).json()["items"]
    assert [one["id"] for one in runs] == [child["id"]]


def test_a_cancelled_run_ends_the_call_it_waits_for(bench: Bench) -> None:
    bench.workflow(
        "long", [step("sleep", {"sleep": 50, "key": "long"}, timeout_s=55), step("next")], [("sleep", "next")]
    )
    run = bench.start("long")
    bench.reached(run, "sleep", "running")
    answer = bench.post(run, "cancel", {"reason": "enough", "compensate": False})
    assert answer.status_code == 200, answer.text
    done = bench.ended(run)
    assert (done["status"], done["error"]["message"]) == ("cancelled", "enough")
    assert states(done) == {"sleep": "cancelled", "next": "skipped"}
    assert bench.platform.call("wf-step", {"give": 1}) == 1, "the one instance is free again"
    assert bench.post(run, "cancel").json()["code"] == "invalid_state"


def test_a_cancelled_run_is_undone_unless_told_otherwise(bench: Bench) -> None:
    undo = {"function_name": "wf-step", "input_mapping": {"give": "undone"}}
    nodes = [step("book", {"give": 1}, compensate=undo), {"node_key": "on", "node_type": "wait_event", "key": "on"}]
    bench.workflow("booked", nodes, [("book", "on")])
    for compensate, came_to in ((True, "succeeded"), (False, None)):
        run = bench.start("booked")
        bench.reached(run, "on", "waiting")
        assert bench.post(run, "cancel", {"compensate": compensate}).status_code == 200
        done = bench.ended(run)
        assert (done["status"], node(done, "book")["compensation"]) == ("cancelled", came_to)


def test_what_runs_beside_a_failure_is_cancelled_or_finishes(bench: Bench) -> None:
    nodes = [step("bad", {"error": "Burnt"}), step("beside", {"sleep": "$.input", "give": 1}, "wf-many")]
    bench.workflow("beside", nodes)
    assert states(bench.run("beside", 20)) == {"bad": "failed", "beside": "cancelled"}
    assert bench.http.patch("/workflows/beside", json={"on_failure": "finish"}).status_code == 200
    run = bench.run("beside", 0.5)
    assert (run["status"], states(run)) == ("failed", {"bad": "failed", "beside": "succeeded"})


def test_a_run_goes_on_from_where_it_failed_or_forks(bench: Bench) -> None:
    """A retry keeps what had succeeded; a fork is another run, with another input for its first node."""
    bench.workflow(
        "resumed",
        [step("first", {"key": "$.run.id"}), step("second", {"key": "$.input.key", "failures": "$.input.failures"})],
        [("first", "second")],
        {"first": "$.nodes.first.output.calls", "second": "$.nodes.second.output.calls"},
    )
    run = bench.run("resumed", {"key": "resumed", "failures": 1})
    assert (run["status"], run["error"]["type"]) == ("failed", "Flaky")
    assert bench.post(run, "retry", {"from": "nobody"}).json()["errors"][0]["field"] == "from"
    assert bench.post(run, "retry").status_code == 200
    done = bench.ended(run)
    assert (done["status"], done["output"]) == ("succeeded", {"first": 1, "second": 2}), "first was called once"
    assert len(node(done, "first")["attempts"]) == 1
    assert bench.post(run, "retry").json()["code"] == "invalid_state", "it has succeeded"

    forked = bench.post(run, "fork", {"from": "second", "input": {"give": {"calls": 9}}})
    assert forked.status_code == 201, forked.text
    other = bench.ended(forked.json())
    assert (other["id"] != run["id"], other["forked_from"]) == (True, run["id"])
    assert (other["status"], other["output"]) == ("succeeded", {"first": 1, "second": 9})
    assert bench.ended(run)["output"] == {"first": 1, "second": 2}
    whole = bench.ended(bench.post(run, "fork", {"input": {"key": "anew", "failures": 0}, "version": 1}).json())
    assert whole["output"] == {"first": 1, "second": 1}, "from its start, under its own run id"


def test_time_limits_of_nodes_and_runs(bench: Bench) -> None:
    bench.workflow("slow", [step("nap", {"sleep": 30, "key": "slow"}, "wf-many", timeout_s=0.3)])
    run = bench.run("slow")
    assert (run["status"], run["error"]["type"]) == ("failed", "Nova.Timeout")
    bench.publish("slow", [{"node_key": "nap", "node_type": "wait", "seconds": 60}])
    run = bench.run("slow", timeout_s=1)
    assert (run["status"], states(run)["nap"]) == ("timed_out", "cancelled")
    assert bench.http.patch("/workflows/slow", json={"default_timeout_s": 1}).status_code == 200
    assert bench.run("slow")["status"] == "timed_out"


def test_runs_are_named_bounded_paused_and_listed(bench: Bench) -> None:
    bench.workflow(
        "bounded",
        [{"node_key": "go", "node_type": "wait_event", "key": "go"}, step("then", {"give": 1})],
        [("go", "then")],
        max_concurrent_runs=1,
        on_limit="reject",
        tags={"a": "b"},
    )
    run = bench.start("bounded", run_id="night-1")
    assert bench.start("bounded", run_id="night-1")["id"] == run["id"], "the same name is the same run"
    refused = bench.http.post("/workflows/bounded/runs", json={})
    assert (refused.status_code, refused.json()["code"]) == (429, "inflight_limit"), refused.text
    assert bench.http.patch("/workflows/bounded", json={"on_limit": "queue"}).status_code == 200
    queued = bench.start("bounded")
    assert queued["status"] == "pending"
    assert bench.post(run, "pause").status_code == 200
    until(lambda: bench.of(run)["status"] == "paused", "it is paused")
    bench.post(run, "events/go")
    assert bench.of(run)["status"] == "paused"
    assert bench.post(run, "resume").status_code == 200
    assert bench.ended(run)["status"] == "succeeded"
    bench.post(queued, "events/go")
    assert bench.ended(queued)["status"] == "succeeded", "its turn came"
    page = bench.http.get("/workflows/bounded/runs", params={"limit": 1, "status": "succeeded", "version": 1}).json()
    assert [one["id"] for one in page["items"]] == [queued["id"]]
    rest = bench.http.get("/workflows/bounded/runs", params={"cursor": page["next_cursor"], "since": run["created_at"]})
    assert [(one["id"], one["run_id"]) for one in rest.json()["items"]] == [(run["id"], "night-1")]
    assert bench.http.get("/workflows/bounded/runs", params={"version": 2}).json()["items"] == []
    assert bench.http.patch("/workflows/bounded", json={"halted": True}).status_code == 200
    halted = bench.http.post("/workflows/bounded/runs", json={})
    assert (halted.status_code, halted.json()["code"]) == (403, "halted"), halted.text
    assert bench.http.patch("/workflows/bounded", json={"halted": False}).status_code == 200
    first, second = bench.start("bounded"), bench.start("bounded")
    assert second["status"] == "pending"
    assert bench.http.patch("/workflows/bounded", json={"max_concurrent_runs": 0}).status_code == 200
    for run in (first, second):
        bench.post(run, "events/go")
        assert bench.ended(run)["status"] == "succeeded", "a higher limit lets in who waits"
    for path in ("/runs/x", f"/workflows/other/runs/{run['id']}"):
        assert bench.http.get(path).status_code == 404


def test_a_run_is_followed_to_its_end(bench: Bench) -> None:
    bench.workflow("told", [step("a", {"give": 1, "sleep": 0.2}), step("b", {"error": "Burnt"})], [("a", "b")])
    run = bench.start("told")
    path = f"/workflows/told/runs/{run['id']}/events"
    seen: list[tuple[str, str, Any]] = []
    with bench.http.stream("GET", path) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = value
            elif name == "event":
                kind = value
            elif name == "data":
                seen.append((number, kind, json.loads(value)))
    nodes = [(data["node_key"], data["status"]) for _, kind, data in seen if kind == "node"]
    assert ("a", "succeeded") in nodes
    assert nodes[-1] == ("b", "failed")
    assert nodes.index(("a", "succeeded")) < nodes.index(("b", "failed"))
    assert [(kind, data["status"]) for _, kind, data in seen[-2:]] == [("run", "failed"), ("end", "failed")]
    rest = bench.http.get(path, headers={"Last-Event-ID": seen[-1][0]}).text
    assert "event: node" not in rest
    assert "event: end" in rest


def test_what_cannot_be_a_workflow_is_refused_with_every_reason(bench: Bench) -> None:
    cycle = {
        "nodes": [step("a"), step("b", name="nobody")],
        "edges": [{"from": "a", "to": "b"}, {"from": "b", "to": "a"}],
    }
    answer = bench.http.post("/workflows/validate", json=cycle)
    assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")
    told = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert "nodes[1].function_name" in told
    assert any("cycle" in message or "circle" in message for message in told.values()), told
    many = {"nodes": [step(f"n{n}") for n in range(501)]}
    assert "limits.workflow_nodes" in bench.http.post("/workflows/validate", json=many).json()["detail"]
    huge = bench.http.post("/workflows/validate", json={"nodes": []})
    assert huge.status_code == 400
    large = bench.http.post("/workflows/nobody/runs", json={"input": "x" * (1 << 20)})
    assert (large.status_code, large.json()["code"]) == (413, "payload_too_large")
