"""Replays, on a real database: whose input runs again, and what is said of the difference."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from nova.api import replays
from nova.clock import SYSTEM_CLOCK
from nova.domain.call import Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.function import Capture
from nova.domain.identity import Scope
from nova.domain.version import FunctionSettings, Recorded
from nova.errors import NovaError
from nova.execution.capture import kept
from nova.execution.catalog import Catalog
from nova.execution.replays import ReplayHandlers
from nova.execution.snapshots import SnapshotMaker
from nova.store import callrows
from nova.store.callrows import FinishedCall
from nova.store.db import Database
from nova.store.invocations import InvocationStore
from nova.store.listen import Listener
from tests.execution.fakes import make_snapshot
from tests.execution.finished import boom, finished, make_result
from tests.execution.test_catalog import Deployer, Networks, Runtimes
from tests.http.harness import Api, management

pytestmark = pytest.mark.anyio


@dataclass
class Ports:
    """Runs a call as ``answers`` says for its qualifier; remembers what it was asked."""

    answers: dict[str | None, dict[str, Any]] = field(default_factory=dict)
    asked: list[CallRequest] = field(default_factory=list)

    @property
    def invoker(self) -> "Ports":
        return self

    @property
    def acceptor(self) -> "Ports":
        return self

    async def invoke(self, call: CallRequest) -> CallResult:
        self.asked.append(call)
        answer = self.answers[call.qualifier]
        if "refusal" in answer:
            raise answer["refusal"]
        return make_result(call, **answer)

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        self.asked.append(call)
        return Accepted("0199aaaa-0000-7000-8000-000000000000", "queued")


@dataclass
class Rig:
    api: Api
    database: Database
    control: Deployer
    ports: Ports
    catalog: Catalog
    function_id: str

    async def call(self, payload: bytes, capture: Capture = Capture(), **changes: Any) -> str:
        """A finished call whose record has been written; its id."""
        snapshot = make_snapshot("hello", function_id=self.function_id, version=1)
        request, result = finished(snapshot, payload, **changes)
        done = FinishedCall(int(SYSTEM_CLOCK.now().timestamp() * 1e6), request, snapshot, result)
        row = callrows.encode(callrows.version_prefix(snapshot), done, *kept(capture, 64, request, result))
        await InvocationStore(self.database).append([row], ())
        return request.request_id

    async def replay(self, call_id: str, query: str = "", key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"X-API-Key": key}
        return await self.api.client.post(f"/invocations/{call_id}/replay{query}", headers=headers)

    async def redact(self, *pointers: str) -> None:
        function = await self.control.functions.lookup(Scope(), "hello")
        assert function is not None
        settings = FunctionSettings(Recorded(capture=Capture(redact=pointers)))
        async with self.database.transaction() as conn:
            await self.control.functions.save(conn, function.id, settings=settings, head=1, live=1)
        self.catalog.forget(Scope(), "hello")


@pytest.fixture
async def listener(pg_dsn: str) -> AsyncIterator[Listener]:
    listener = Listener(pg_dsn)
    await listener.start()
    yield listener
    await listener.close()


@pytest.fixture
async def rig(database: Database, listener: Listener) -> AsyncIterator[Rig]:
    control = Deployer(database)
    await control.deploy()
    await control.deploy()
    catalog = Catalog(control.functions, control.versions, SnapshotMaker(Runtimes(), Networks()), listener)
    function = await control.functions.lookup(Scope(), "hello")
    assert function is not None
    ports = Ports()

    async def settle() -> None:
        return

    handlers = ReplayHandlers(InvocationStore(database), catalog, ports, settle, SYSTEM_CLOCK)
    async with management(database, [handlers], replays.ROUTES) as api:
        yield Rig(api, database, control, ports, catalog, function.id)


async def test_a_kept_call_runs_again_as_any_version(rig: Rig) -> None:
    call_id = await rig.call(b'{"n": 1}', output=b'{"a": 1, "b": [1, 2], "gone": 0}')
    rig.ports.answers = {
        None: {"output": b'{"b": [1, 2], "gone": 0, "a": 1.0}'},
        "2": {"output": b'{"a": 2, "b": [1], "new": null}', "version": 2, "duration_us": 9000},
        "3": {"error": boom("KeyError"), "version": 3},
        "4": {"refusal": NovaError("timeout", "no answer in 1 s", extra={"version": 4})},
    }
    answer = await rig.replay(call_id)
    assert answer.status_code == 200, answer.text
    same = answer.json()
    assert (same["same"], same["compared"], same["differences"]) == (True, "output", [])
    [asked] = rig.ports.asked
    assert (asked.payload, asked.caller, asked.request_id) == (
        b'{"n": 1}',
        f"replay:{call_id}",
        answer.headers["X-Request-ID"],
    )
    other = (await rig.replay(call_id, "?qualifier=2")).json()
    assert (other["same"], other["original"]["version"], other["replay"]["version"]) == (False, 1, 2)
    assert (other["original"]["duration_ms"], other["replay"]["duration_ms"]) == (1.5, 9.0)
    assert other["differences"] == [
        {"path": "/a", "sides": ["before", "after"], "before": 1, "after": 2},
        {"path": "/b/1", "sides": ["before"], "before": 2, "after": None},
        {"path": "/gone", "sides": ["before"], "before": 0, "after": None},
        {"path": "/new", "sides": ["after"], "before": None, "after": None},
    ]
    failed = (await rig.replay(call_id, "?qualifier=3")).json()
    assert (failed["same"], failed["compared"], failed["replay"]["error"]["type"]) == (False, "status", "KeyError")
    late = (await rig.replay(call_id, "?qualifier=4")).json()
    assert late["replay"]["error"]["type"] == "Nova.Timeout"
    queued = await rig.replay(call_id, "?async=true&qualifier=2")
    assert (queued.status_code, queued.json()["status"]) == (202, "queued")
    assert queued.headers["Location"] == f"/async-invocations/{queued.json()['invocation_id']}"
    assert (rig.ports.asked[-1].qualifier, rig.ports.asked[-1].payload) == ("2", b'{"n": 1}')


async def test_what_was_not_kept_whole_cannot_run_again(rig: Rig) -> None:
    asked = len(rig.ports.asked)
    for capture in (Capture("none"), Capture("errors"), Capture(max_kb=0)):
        answer = await rig.replay(await rig.call(b'{"n": 1}', capture))
        assert (answer.status_code, answer.json()["code"]) == (410, "gone"), capture
    await rig.redact("/password")
    masked = Capture(redact=("/password",))
    hidden = await rig.replay(await rig.call(json.dumps({"password": "x"}).encode(), masked))
    assert (hidden.status_code, "redacted" in hidden.json()["detail"]) == (410, True)
    rig.ports.answers = {None: {}}
    assert (await rig.replay(await rig.call(b"{}", masked))).status_code == 200
    await rig.control.delete()
    rig.catalog.forget(Scope(), "hello")
    assert (await rig.replay(await rig.call(b"{}"))).status_code == 410
    assert len(rig.ports.asked) == asked + 1


async def test_who_may_not_read_payloads_or_call_may_not_replay(rig: Rig) -> None:
    call_id = await rig.call(b"{}")
    for role in ("viewer", "invoker"):
        answer = await rig.replay(call_id, key=await rig.api.key(role))
        assert answer.status_code == 403, role
    assert (await rig.replay("0199aaaa-0000-7000-8000-000000000000")).status_code == 404
    assert (await rig.replay(call_id, "?qualifier=a%20b")).status_code == 400
    assert not rig.ports.asked
