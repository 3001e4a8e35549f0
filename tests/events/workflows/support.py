"""Workflows that exist in the database and nowhere else, and the engine of one process in front of scripted functions."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.message import NewMessage
from nova.errors import FunctionError
from nova.events.bus.publish import TopicPublisher
from nova.events.workflows.definitions import Definitions
from nova.events.workflows.engine import Engine
from nova.events.workflows.observers import NoEvents
from nova.events.workflows.runs import Runs
from nova.events.workflows.topic_waits import TopicWaits
from nova.ids import new_id
from nova.service import Background, ServiceGroup
from nova.store.db import Connection, Database, Row
from nova.store.listen import Listener
from nova.store.workflow_runs import KIND, RunStore
from nova.work.notices import Notices
from nova.work.runner import Runner

JsonObject = dict[str, Any]
Function = Callable[[Any], Any]
ENDED = ("succeeded", "failed", "cancelled", "timed_out")


def function(key: str, name: str = "echo", **more: Any) -> JsonObject:
    return {"node_key": key, "node_type": "function", "function_name": name, **more}


def node(key: str, type: str, /, **more: Any) -> JsonObject:
    return {"node_key": key, "node_type": type, **more}


def chain(*nodes: JsonObject, **more: Any) -> JsonObject:
    """One after the other."""
    keys = [one["node_key"] for one in nodes]
    edges = [{"from": before, "to": after} for before, after in itertools.pairwise(keys)]
    return {"nodes": list(nodes), "edges": edges, **more}


async def workflow(db: Database, name: str, definition: Any, *, version: int = 1, **settings: Any) -> str:
    """A workflow with one version, or another version of it; its id."""
    row = await db.one(
        "SELECT id::text AS id FROM dag_workflows WHERE name = %(name)s AND deleted_at IS NULL", name=name
    )
    workflow_id = row["id"] if row else new_id()
    if row is None:
        fields = {"max_concurrent_runs": 0, "on_limit": "queue", "on_failure": "cancel", "halted": False, **settings}
        await db.run(
            "INSERT INTO dag_workflows (id, tenant_id, namespace, name, etag, created_by, active_version,"
            " max_concurrent_runs, on_limit, on_failure, halted)"
            " VALUES (%(id)s, 'default', 'default', %(name)s, '', 'test', %(version)s, %(max_concurrent_runs)s,"
            " %(on_limit)s, %(on_failure)s, %(halted)s)",
            id=workflow_id,
            name=name,
            version=version,
            **fields,
        )
    await db.run(
        "INSERT INTO dag_workflow_versions (workflow_id, version, tenant_id, namespace, definition, digest, created_by)"
        " VALUES (%(id)s, %(version)s, 'default', 'default', %(definition)s, '', 'test')",
        id=workflow_id,
        version=version,
        definition=json.dumps(definition),
    )
    return workflow_id


@dataclass
class Functions:
    """Stands for the execution plane. A function that raises has failed with that class; ``seen`` is name and input."""

    by_name: dict[str, Function] = field(default_factory=dict)
    seen: list[tuple[str, Any]] = field(default_factory=list)
    calls: list[CallRequest] = field(default_factory=list)

    async def invoke(self, call: CallRequest) -> CallResult:
        given = json.loads(call.payload)
        self.seen.append((call.function, given))
        self.calls.append(call)
        found = self.by_name.get(call.function, lambda given: given)
        try:
            answer = found(given)
            if isinstance(answer, Awaitable):
                answer = await answer
        except Failed as failed:
            return CallResult(call.request_id, 1, None, FunctionError(failed.type, str(failed)), 100, False, "i")
        return CallResult(call.request_id, 1, json.dumps(answer).encode(), None, 100, False, "i")

    def inputs(self, name: str) -> list[Any]:
        return [given for function, given in self.seen if function == name]


class Failed(Exception):
    """What a function raises; ``type`` is the class as the platform tells it."""

    def __init__(self, message: str = "no", type: str = "ValueError") -> None:
        super().__init__(message)
        self.type = type


def failing(times: int, answer: Any = "well") -> Function:
    """Fails so often, then answers."""
    left = [times]

    def call(_given: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise Failed(f"{left[0]} left")
        return answer

    return call


@dataclass
class Nebula:
    db: Database
    runs: Runs
    functions: Functions
    engine: Engine
    publisher: TopicPublisher
    told: list[tuple[str, str]]

    async def start(self, workflow: str, given: Any = None, **more: Any) -> str:
        payload = json.dumps({} if given is None else given).encode()
        return await self.runs.start(SCOPE, workflow, payload, caller="key:test", **more)

    async def run(self, run_id: str) -> Row:
        row = await self.db.one(
            "SELECT r.*, w.run_at = 'infinity' AS dormant, w.owner FROM dag_runs r LEFT JOIN work w ON w.id = r.id"
            " WHERE r.id = %(id)s",
            id=run_id,
        )
        assert row is not None
        return row

    async def ended(self, run_id: str, timeout_s: float = 60) -> Row:
        return await self.until(run_id, lambda row: row["status"] in ENDED, timeout_s)

    async def until(self, run_id: str, fits: Callable[[Row], bool], timeout_s: float = 60) -> Row:
        async with asyncio.timeout(timeout_s):
            while not fits(row := await self.run(run_id)):
                await asyncio.sleep(0.01)
        return row

    async def nodes(self, run_id: str) -> dict[str, Row]:
        """By path, and ``path[item]`` for items."""
        rows = await self.db.fetch("SELECT * FROM dag_run_nodes WHERE run_id = %(id)s", id=run_id)
        return {row["node_key"] + (f"[{row['item']}]" if row["item"] >= 0 else ""): row for row in rows}

    async def waits(self, run_id: str, path: str) -> None:
        """Until the node waits and the run holds no worker."""
        async with asyncio.timeout(20):
            while True:
                found = (await self.nodes(run_id)).get(path)
                if found and found["status"] == "waiting" and (await self.run(run_id))["owner"] is None:
                    return
                await asyncio.sleep(0.01)

    async def result(self, workflow: str, given: Any = None, **more: Any) -> Any:
        """The output of a run that succeeds."""
        row = await self.ended(await self.start(workflow, given, **more))
        assert row["status"] == "succeeded", row["error"]
        return row["output"]


SCOPE = Scope()


async def publish(n: Nebula, topic: str, *payloads: Any) -> None:
    messages = [NewMessage(json.dumps(one).encode()) for one in payloads]
    await n.publisher.publish(SCOPE, topic, messages, caller="key:test")


class _Held:
    """A fence that is always good."""

    async def check(self, conn: Connection, /) -> None:
        return None


@asynccontextmanager
async def nebula(
    database: Database,
    functions: Functions | dict[str, Function] | None = None,
    *,
    workers: int = 16,
    lease_s: float = 30,
    max_items: int = 10_000,
    max_depth: int = 16,
    work: bool = True,
) -> AsyncIterator[Nebula]:
    """``work`` False: runs are begun, and nobody advances them."""
    calls = functions if isinstance(functions, Functions) else Functions(functions or {})
    told: list[tuple[str, str]] = []
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        database.on_commit = listener.deliver
        notices = await group.start(Notices(database))
        engine = await group.start(
            Engine(
                database,
                calls,
                notices,
                listener,
                max_items=lambda: max_items,
                max_depth=lambda: max_depth,
                events=_Told(told),
            )
        )
        runs = Runs(database, notices, Definitions(RunStore(database)))
        if work:
            kinds = {KIND: engine.kind(lambda: workers)}
            await group.start(Runner(database, listener, kinds, lease_s=lease_s, poll_s=0.5, grace_s=0.5))
        publisher = await group.start(TopicPublisher(database, notices))
        tasks = Background("test")
        if work:
            tasks.spawn("waits", TopicWaits(database, notices, listener, SYSTEM_CLOCK).lead(_Held()))
        try:
            yield Nebula(database, runs, calls, engine, publisher, told)
        finally:
            await tasks.close()


class _Told(NoEvents):
    def __init__(self, told: list[tuple[str, str]]) -> None:
        self._told = told

    def run_ended(self, scope: Scope, workflow: str, status: str) -> None:
        self._told.append((workflow, status))
