"""Durable functions on both shapes of the platform: what is recorded happens once, whatever dies, and waiting holds nothing."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.planes import SixPlanes
from tests.e2e.server import ORBIT, NovaServer, clean_environment

STORY = """
def handler(event, context):
    first = context.step("first", lambda: {"got": event})
    when, chance = context.now().isoformat(), context.random()
    context.sleep("nap", 0.2)
    event = context.wait_event("go")
    approval = context.callback("approve", timeout_s=60, heartbeat_s=60)
    word = approval.result()
    rows = context.map("rows", [1, 2, 3], lambda below, n: below.step("twice", lambda: n * 2), max_concurrency=2)
    both = context.parallel(
        "both", lambda below: below.step("left", lambda: "l"), lambda below: below.invoke("durable-plain", {"n": 4})
    )
    deep = context.child("deep", lambda below, n: below.step("inner", lambda: n), 7)
    return [first, [when, chance], event, word, rows, both, deep]
"""
PLAIN = """
def handler(event):
    if event.get("n") == 13:
        raise LookupError("thirteen")
    return event["n"] * 10
"""
AWAITED = """
import asyncio
tries = []
async def work(n):
    await asyncio.sleep(0.01)
    return n
async def flaky(context):
    if context.state is not None and await context.state.increment("tries") < 3:
        raise OSError("not yet")
    return "at last"
async def handler(event, context):
    rows = await context.map("rows", [1, 2], lambda below, n: below.step("one", work, n))
    last = await context.step("flaky", flaky, context, retries=2, backoff_s=0.1)
    try:
        await context.step("bad", work_badly, retries=0)
    except context.StepError as error:
        bad = [error.type, str(error)]
    try:
        await context.wait_event("never", timeout_s=0.2)
    except context.WaitTimeout:
        late = True
    try:
        await context.invoke("durable-plain", {"n": 13})
    except context.CallError as error:
        called = [error.type, str(error)]
    return [rows, last, bad, late, called]
async def work_badly():
    raise ValueError("no")
"""
FORGETFUL = """
import uuid
def handler(event, context):
    context.step("same", lambda: 1)
    context.step(str(uuid.uuid4()), lambda: 2)
    context.sleep("nap", 0.1)
    context.step("after", lambda: 3)
"""
MORTAL = """
import os, signal
def count(context, name):
    return context.state.increment(name)
def handler(event, context):
    before = context.step("before", count, context, "before")
    if event == "always" or context.state.increment("runs") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    after = context.step("after", count, context, "after")
    return [before, after]
"""
SLOW = """
import time
def slowly(context, name):
    time.sleep(0.3)
    return context.state.increment(name)
def handler(event, context):
    return [context.step(f"s{n}", slowly, context, f"{event}-{n}") for n in range(6)]
"""
NODE = """
exports.handler = async (event, context) => {
  const first = await context.step("first", () => event.n + 1);
  const rows = await context.map("rows", [1, 2, 3], (below, n) => below.step("twice", async () => n * 2), { maxConcurrency: 2 });
  await context.sleep("nap", 0.2);
  const last = await context.step("flaky", async () => {
    if ((await context.state.increment("tries")) < 2) throw new RangeError("not yet");
    return "at last";
  }, { backoffS: 0.1 });
  const bad = await context.step("bad", () => { throw new TypeError("no"); }, { retries: 0 }).catch((e) => [e.type, e.message]);
  const late = await context.waitEvent("never", { timeoutS: 0.2 }).catch((error) => error instanceof context.WaitTimeout);
  const both = await context.parallel("both", [
    (below) => below.invoke("durable-plain", { n: 4 }),
    (below) => below.invoke("durable-plain", { n: 13 }).catch((error) => error.type),
  ]);
  const same = [(await context.now()).getTime(), context.random()];
  const word = await context.waitEvent("go");
  const deep = await context.child("deep", (below) => below.step("inner", () => 7));
  const approval = await context.callback("approve");
  return [first, rows, last, bad, late, both, word, deep, await approval.result(), same];
};
"""
AWS = """
from aws_durable_execution_sdk_python import durable_execution
from aws_durable_execution_sdk_python.config import Duration

def flaky(step):
    if step.attempt < 2:
        raise ValueError("the first time")
    return step.attempt

@durable_execution
def handler(event, context):
    added = context.step(lambda _: event["n"] + 1, name="add")
    tries = context.step(flaky, name="flaky")
    context.wait(Duration.from_seconds(1), name="nap")
    rows = context.map([1, 2], lambda below, item, *_: below.step(lambda _: item * 2, name="twice"), name="rows")
    called = context.invoke("durable-plain", {"n": 4}, name="call")
    approval = context.create_callback(name="approve")
    return [added, tries, rows.get_results(), called, approval.result()]
"""


class Durable:
    """A platform, and executions on it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.http = platform.http

    def begin(self, function: str, given: Any = None, **fields: Any) -> str:
        answer = self.http.post(f"/functions/{function}/invoke-durable", json={"input": given} | fields)
        assert answer.status_code == 202, answer.text
        number: str = answer.json()["execution_id"]
        assert answer.headers["location"].endswith(f"/durable-executions/{number}")
        return number

    def get(self, number: str, wait_s: float = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/durable-executions/{number}", params={"wait_s": wait_s}).json()
        return found

    def ended(self, number: str) -> dict[str, Any]:
        """When it has."""
        found: dict[str, Any] = {}

        def over() -> bool:
            answer = self.http.get(f"/durable-executions/{number}", params={"wait_s": 10})
            if answer.status_code == 200:  # a plane may be away
                found.update(answer.json())
            return bool(found.get("ended_at"))

        until(over, "the execution ends", 40)
        return found

    def steps(self, number: str, **query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.http.get(f"/durable-executions/{number}/steps", params=query).json()["items"]
        return items

    def waits_for(self, number: str, name: str) -> dict[str, Any]:
        """The operation, once the execution waits for it."""

        def waiting() -> list[dict[str, Any]]:
            return [step for step in self.steps(number) if step["name"] == name and step["status"] == "started"]

        until(lambda: bool(waiting()) and self.get(number)["status"] == "suspended", f"it waits for {name}")
        return waiting()[0]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)


@pytest.fixture(scope="module")
def here(nova_server: NovaServer) -> Iterator[Durable]:
    with platform_at(nova_server.url) as platform:
        codes = {"story": STORY, "awaited": AWAITED, "forgetful": FORGETFUL, "mortal": MORTAL}
        for name, code in codes.items():
            platform.deploy(f"durable-{name}", code, mode="durable", timeout_s=20, max_replicas=1)
        platform.deploy("durable-plain", PLAIN)
        yield Durable(platform)
        for name in (*codes, "plain"):
            platform.delete(f"durable-{name}")


def test_an_execution_waits_without_an_instance_and_goes_on_where_it_was(here: Durable) -> None:
    number = here.begin("durable-story", {"n": 1}, execution_id="order-1")
    early = here.post(f"/durable-executions/{number}/events", name="later", payload=[1])
    assert early.status_code == 202, early.text
    waiting = here.waits_for(number, "go")
    assert waiting["kind"] == "callback"
    # the only instance that this function may have serves another execution meanwhile
    other = here.begin("durable-story", {"n": 2})
    here.waits_for(other, "go")
    assert here.post(f"/durable-executions/{other}/cancel", reason="no more").status_code == 202
    assert here.get(other)["error"] == {"type": "Nova.Cancelled", "message": "no more", "stack": []}

    assert here.post(f"/durable-executions/{number}/events", name="go", payload={"k": 1}).status_code == 202
    callback = here.waits_for(number, "approve")["callback_id"]
    assert here.post(f"/durable-callbacks/{callback}/heartbeat").status_code == 202
    assert here.post(f"/durable-callbacks/{callback}/succeed", payload="yes").status_code == 202
    execution = here.ended(number)
    assert execution["status"] == "completed", execution
    first, (when, chance), *rest = execution["output"]
    assert (first, rest) == ({"got": {"n": 1}}, [{"k": 1}, "yes", [2, 4, 6], ["l", 40], 7])
    assert when <= execution["ended_at"]
    assert 0 <= chance < 1
    assert (execution["name"], execution["version"], execution["input"]) == ("order-1", 1, {"n": 1})

    again = here.post(f"/durable-callbacks/{callback}/succeed", payload="yes")
    assert (again.status_code, again.json()["code"]) == (409, "invalid_state")
    steps = here.steps(number)
    assert [step["seq"] for step in steps] == list(range(1, len(steps) + 1))
    assert {step["status"] for step in steps} == {"succeeded"}
    page = here.http.get(f"/durable-executions/{number}/steps", params={"limit": 2}).json()
    assert here.steps(number, limit=2, cursor=page["next_cursor"]) == steps[2:4]


def test_a_name_begins_one_execution(here: Durable) -> None:
    number = here.begin("durable-story", {}, execution_id="only-once", qualifier="1", timeout_s=3600)
    assert here.begin("durable-story", {}, execution_id="only-once") == number
    other = here.post("/functions/durable-story/invoke-durable", input=[], execution_id="only-once")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    listed = here.http.get("/functions/durable-story/durable-executions", params={"name": "only-once"}).json()["items"]
    assert [item["id"] for item in listed] == [number]
    begun = here.get(number)["created_at"]
    query = {"status": "running,suspended", "since": begun, "limit": 1}
    assert [
        item["id"]
        for item in here.http.get("/functions/durable-story/durable-executions", params=query).json()["items"]
    ] == [number]
    rest = here.http.get("/functions/durable-story/durable-executions", params={"limit": 1}).json()["next_cursor"]
    older = here.http.get("/functions/durable-story/durable-executions", params={"cursor": rest}).json()["items"]
    assert number not in [item["id"] for item in older]
    here.post(f"/durable-executions/{number}/cancel")


def test_an_execution_that_takes_too_long_fails(here: Durable) -> None:
    number = here.begin("durable-story", {}, timeout_s=1)
    assert here.ended(number)["error"]["type"] == "Nova.Timeout"


def test_an_asynchronous_handler_has_the_same_operations(here: Durable) -> None:
    rows, last, bad, late, called = here.platform.call("durable-awaited", {})
    assert (rows, last, bad, late) == ([1, 2], "at last", ["ValueError", "no"], True)
    assert called == ["LookupError", "thirteen"]


def test_another_step_at_a_recorded_place_is_named_and_nothing_is_written(here: Durable) -> None:
    number = here.begin("durable-forgetful")
    execution = here.ended(number)
    assert (execution["status"], execution["error"]["type"]) == ("failed", "Nova.NonDeterministic")
    assert [step["name"] for step in here.steps(number)][::2] == ["same", "nap"]


def test_a_step_that_is_recorded_never_runs_again_when_its_process_is_killed(here: Durable) -> None:
    assert here.platform.call("durable-mortal", "once") == [1, 1]
    number = here.begin("durable-mortal", "always")
    execution = here.ended(number)
    assert (execution["status"], execution["error"]["type"]) == ("failed", "Nova.Signal")
    assert [step["name"] for step in here.steps(number)] == ["before"]


def test_a_callback_that_fails_fails_its_execution_and_a_retry_goes_on_from_there(here: Durable) -> None:
    number = here.begin("durable-story", {})
    here.waits_for(number, "go")
    here.post(f"/durable-executions/{number}/events", name="go")
    callback = here.waits_for(number, "approve")["callback_id"]
    here.post(f"/durable-callbacks/{callback}/fail", type="Refused", message="by the board")
    execution = here.ended(number)
    assert execution["error"]["type"] == "Refused"
    assert execution["error"]["message"] == "by the board"
    assert here.post(f"/durable-executions/{number}/retry").status_code == 202
    callback = here.waits_for(number, "approve")["callback_id"]
    here.post(f"/durable-callbacks/{callback}/succeed", payload="then yes")
    assert here.ended(number)["output"][3] == "then yes"
    retried = here.post(f"/durable-executions/{number}/retry")
    assert (retried.status_code, retried.json()["code"]) == (409, "invalid_state")


def test_what_a_durable_function_cannot_do_is_said(here: Durable) -> None:
    streamed = here.platform.http.post("/functions/durable-story/invoke-stream", json={})
    assert (streamed.status_code, streamed.json()["code"]) == (422, "unsupported")
    plain = here.post("/functions/durable-plain/invoke-durable")
    assert (plain.status_code, plain.json()["code"]) == (422, "unsupported")
    many = here.post("/functions", name="x", runtime="python", code=PLAIN, mode="durable", instance_concurrency=2)
    assert many.json()["errors"][0]["field"] == "instance_concurrency"
    late = here.http.post("/functions/durable-story/invoke", json={}, headers={"X-Nova-Timeout-S": "0.5"})
    assert (late.status_code, late.json()["code"]) == (504, "timeout")
    assert here.post(f"/durable-executions/{late.json()['execution_id']}/cancel").status_code == 202
    queued = here.post("/functions/durable-story/invoke-async", payload={})
    job = here.http.get(f"/async-invocations/{queued.json()['invocation_id']}", params={"wait_s": 10}).json()
    assert here.post(f"/durable-executions/{job['output']['execution_id']}/cancel").status_code == 202


def test_node_has_the_same_operations(here: Durable) -> None:
    here.platform.deploy("durable-node", NODE, runtime="node", mode="durable", timeout_s=20)
    try:
        number = here.begin("durable-node", {"n": 1})
        here.waits_for(number, "go")
        here.post(f"/durable-executions/{number}/events", name="go", payload="now")
        callback = here.waits_for(number, "approve")["callback_id"]
        here.post(f"/durable-callbacks/{callback}/succeed", payload=True)
        execution = here.ended(number)
        assert execution["status"] == "completed", execution
        *told, (when, chance) = execution["output"]
        assert told == [2, [2, 4, 6], "at last", ["TypeError", "no"], True, [40, "LookupError"], "now", 7, True]
        recorded = {step["name"]: step["output"] for step in here.steps(number)}
        assert abs(when - recorded["now"] * 1000) <= 1
        assert 0 <= chance < 1
    finally:
        here.platform.delete("durable-node")


def test_orbit_begins_shows_and_steers_executions(here: Durable) -> None:
    def orbit(*words: str) -> Any:
        command = [ORBIT, "--server", here.platform.url, "durable", *words, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    number = orbit("start", "durable-story", "-d", '{"n": 3}', "--name", "by-hand")["execution_id"]
    here.waits_for(number, "go")
    orbit("send", number, "go", "-d", '"now"')
    callback = here.waits_for(number, "approve")["callback_id"]
    assert callback in [step["callback_id"] for step in orbit("steps", number)["items"]]
    orbit("succeed", callback, "-d", '"fine"')
    assert orbit("get", number, "--wait", "10")["output"][2:4] == ["now", "fine"]
    listed = orbit("list", "durable-story", "--name", "by-hand", "--status", "completed")["items"]
    assert [item["id"] for item in listed] == [number]
    other = orbit("start", "durable-story")["execution_id"]
    orbit("cancel", other, "--reason", "enough")
    orbit("retry", other)
    here.waits_for(other, "go")
    orbit("send", other, "go")
    orbit("fail", here.waits_for(other, "approve")["callback_id"], "--type", "No", "--message", "never")
    assert here.ended(other)["error"]["type"] == "No"


def test_the_public_sdk_runs_as_it_is(here: Durable) -> None:
    """The library of another platform's durable functions, unmodified, as a dependency that the function names."""
    here.platform.deploy(
        "durable-sdk",
        AWS,
        mode="durable",
        memory_mb=512,
        timeout_s=60,
        dependency_files={"requirements.txt": "aws-durable-execution-sdk-python>=3,<4\n"},
    )
    try:
        number = here.begin("durable-sdk", {"n": 1})
        callback = here.waits_for(number, "approve")["callback_id"]
        here.post(f"/durable-callbacks/{callback}/succeed", payload="yes")
        execution = here.ended(number)
        assert execution["output"] == [2, 2, [2, 4], 40, '"yes"'], execution
    finally:
        here.platform.delete("durable-sdk")


def test_comet_and_nebula_are_killed_in_the_middle_and_each_step_counts_once(
    planes: SixPlanes, platform: Platform
) -> None:
    platform.deploy("durable-slow", SLOW, mode="durable", timeout_s=20)
    try:
        here = Durable(platform)
        killed: list[str] = []
        numbers = {}
        for plane in ("nebula", "comet", "comet-2"):
            numbers[plane] = here.begin("durable-slow", plane)
            number = numbers[plane]
            until(lambda number=number: len(here.steps(number)) >= 2, "two steps are recorded")  # type: ignore[misc]
            if plane in planes.planes:
                planes.planes[plane].kill()
                planes.planes[plane].start()
                killed.append(plane)
        assert killed[:2] == ["nebula", "comet"]
        for plane, number in numbers.items():
            execution = here.ended(number)
            assert execution["status"] == "completed", (plane, execution)
            recorded = [step for step in here.steps(number) if step["kind"] == "step"]
            assert [step["name"] for step in recorded] == [f"s{n}" for n in range(6)]
            assert execution["output"] == [step["output"] for step in recorded], "what was recorded is what counts"
            # the step under way at the kill may have run twice; every other one ran once
            assert sum(execution["output"]) <= 6 + 1, (plane, execution["output"])
    finally:
        planes.heal()
        platform.delete("durable-slow")
