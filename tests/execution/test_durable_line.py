"""Runs of durable functions in real instances: their questions go to the host on the line that their call came on."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nova.domain.durable import Token
from nova.domain.durable_protocol import envelope
from nova.domain.identity import Scope
from nova.execution.durable import DurableCalls
from nova.ids import new_id
from nova.payload import decode
from nova.store.durable import DurableStore, NewExecution
from nova.store.durable_commits import StepCommits
from nova.store.durable_runs import DurableRunStore
from nova.store.durable_waits import DurableWaits
from nova.store.listen import Listener
from nova.work.notices import Notices
from tests.conftest import _database
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PYTHON = """
import os
way = os.environ["NOVA_API_URL"]
real, armed, old = os.read, [], []

def read(fd, size):
    if fd == 3 and armed:
        armed.clear()
        raise TimeoutError("an alarm went off")
    return real(fd, size)
os.read = read

def interrupted(context):
    armed.append(1)
    try:
        context.step("a", str, 1)
    except TimeoutError as error:
        return [str(error), context.step("b", str, 2)]

def forked(context):
    os.environ["NOVA_API_URL"] = way
    pid = os.fork()
    if pid == 0:
        os._exit(7 if context.step("child", str, 1) == "1" else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def late(context):
    try:
        old[0].step("late", str, 1)
    except Exception as error:
        return [str(error), context.step("own", str, 1)]

def forged(context):
    os.write(4, b'{"ask": {"number": 9, "request_id": "another", "head": {"op": "checkpoint"}, "body": {}}}\\n')
    return real(3, 65536).decode()

def broken(context):
    os.write(4, b'{"ask": 1}\\n')
    return real(3, 65536).decode()

def handler(event, context):
    old.append(context)
    os.environ.pop("NOVA_API_URL", None)
    if event in ("steps", "pieces"):
        if event == "pieces":
            context.write("not for a stream")
        return [context.step(f"s{n}", lambda n=n: {"n": n, "text": "é\\u2028" * 9000}) for n in range(5)]
    return globals()[event](context)
"""
NODE = """
let old;
exports.handler = async (event, context) => {
  delete process.env.NOVA_API_URL;
  if (event === "late") {
    old.step("late", () => 1);
    return context.step("own", () => 2);
  }
  old = context;
  const text = "é\\u2028".repeat(9000);
  const rows = await context.map("rows", [1, 2, 3], (below, n) => below.step("one", () => ({ n, text })));
  return rows.map(({ n }) => n);
};
"""


@dataclass
class Runs:
    """Executions of functions on a stack, run by hand."""

    stack: RealStack
    store: DurableStore

    async def run(self, function: str, event: str) -> tuple[Any, list[str]]:
        """What a run of a new execution answers, and the names of what it recorded."""
        row = await self.stack.db.one("SELECT id FROM functions WHERE name = %(name)s", name=function)
        assert row is not None
        number = new_id()
        new = NewExecution(
            number, Scope(), row["id"], function, 1, None, f'"{event}"', "me", "http", (), None, None, 3600
        )
        assert await self.store.start([new]) == ([number], [])
        begun = await DurableRunStore(self.stack.db).begin(number, 1, 10)
        assert begun is not None
        request_id = new_id()
        given = envelope(begun.execution, Token(request_id, 1, begun.execution.rev), (), more=False)
        result = await self.stack.invoke(given, function, trigger="durable", request_id=request_id)
        told = decode(result.output) if result.output is not None else result.error
        recorded = await self.store.steps(number, after=0, limit=100)
        return told, [str(operation.name) for operation in recorded if operation.status == "SUCCEEDED"]


@pytest.fixture(scope="module")
def module_dsn(pg_server: str, pg_template: str) -> Iterator[str]:
    yield from _database(pg_server, pg_template)


@pytest.fixture(scope="module")
async def runs(module_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runs]:
    async with real_stack(module_dsn, tmp_path_factory.mktemp("line")) as stack:
        store = DurableStore(stack.db)
        waits = DurableWaits(store, Listener(module_dsn))
        calls = DurableCalls(store, DurableRunStore(stack.db), StepCommits(module_dsn), waits, Notices(stack.db))
        stack.guests.durable = calls
        await stack.deploy(PYTHON, "python", mode="durable")
        await stack.deploy(NODE, "node", mode="durable", runtime="node", entry="index.js", handler="index.handler")
        yield Runs(stack, store)
        await calls.close()


async def test_steps_need_no_way_but_the_line_of_their_call(runs: Runs) -> None:
    for event in ("steps", "pieces"):
        told, recorded = await runs.run("python", event)
        assert told["Status"] == "SUCCEEDED", told
        assert [one["n"] for one in decode(told["Result"])] == [0, 1, 2, 3, 4]
        assert recorded == ["s0", "s1", "s2", "s3", "s4"]
    told, recorded = await runs.run("node", "steps")
    assert told["Status"] == "SUCCEEDED", told
    assert decode(told["Result"]) == [1, 2, 3]
    assert sorted(recorded) == ["one"] * 3 + ["rows"] + ["rows[0]", "rows[1]", "rows[2]"]


async def test_a_step_that_is_interrupted_leaves_the_line_as_the_next_one_needs_it(runs: Runs) -> None:
    told, recorded = await runs.run("python", "interrupted")
    assert (told["Status"], decode(told["Result"])) == ("SUCCEEDED", ["an alarm went off", "2"])
    assert recorded == ["a", "b"]


async def test_a_run_that_has_ended_records_nothing_and_does_not_disturb_the_next(runs: Runs) -> None:
    await runs.run("python", "steps")
    told, recorded = await runs.run("python", "late")
    assert (decode(told["Result"]), recorded) == (["the run has ended", "1"], ["own"])
    told, recorded = await runs.run("node", "late")
    assert (told["Status"], decode(told["Result"]), recorded) == ("SUCCEEDED", 2, ["own"])


async def test_a_process_that_the_handler_forks_asks_by_http(runs: Runs) -> None:
    told, recorded = await runs.run("python", "forked")
    assert (decode(told["Result"]), recorded) == (7, ["child"])


async def test_who_asks_for_another_call_is_refused_and_who_does_not_ask_at_all_ends(runs: Runs) -> None:
    told, _ = await runs.run("python", "forged")
    answer = decode(decode(told["Result"]))
    assert (answer["told"], answer["status"], answer["body"]["code"]) == (9, 403, "forbidden")
    told, _ = await runs.run("python", "broken")
    assert told.type == "Nova.InvalidOutput"
    assert "question" in told.message
    told, _ = await runs.run("python", "steps")
    assert told["Status"] == "SUCCEEDED", "another instance"
