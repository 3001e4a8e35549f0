"""Shadow traffic on the real thing: copies run another version, nobody notices but the report."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova.agent import frames
from nova.clock import SYSTEM_CLOCK
from nova.config import LimitSettings
from nova.domain.alias import sampled
from nova.domain.call import CallResult
from nova.domain.function import Capture
from nova.domain.identity import Scope
from nova.domain.shadow import Shadow
from nova.domain.version import FunctionSettings, Recorded
from nova.errors import NovaError
from nova.execution.guest import Guest, GuestApi
from nova.execution.guest_desk import Question
from nova.execution.shadow import Shadows
from nova.execution.snapshots import shadowed
from nova.ids import new_id
from nova.service import ServiceGroup
from nova.store.functions import announce
from nova.store.shadows import ShadowPolicy, ShadowRecord, ShadowStore
from nova.store.state import StateStore
from tests.execution.fakes import make_snapshot
from tests.execution.stack import RealStack, real_stack

pytestmark = pytest.mark.anyio

ONE = "def handler(event, context):\n    return {'n': event.get('n'), 'at': 1, 'secret': 'a', 'list': [1, 2]}\n"
TWO = """
import os
import time

def handler(event, context):
    if event.get("sleep"):
        time.sleep(event["sleep"])
    if event.get("fail"):
        raise ValueError("new trouble" if os.environ["NOVA_SHADOW"] == "1" else "not told")
    n = event.get("n")
    return {"n": n + 1 if n == 7 else n, "at": 2, "secret": "b" if event.get("leak") else "a", "list": [1, 2]}
"""


class Rig:
    def __init__(self, stack: RealStack, store: ShadowStore, refused: list[str]) -> None:
        self.stack = stack
        self.store = store
        self.refused = refused
        """the codes of calls that were counted as turned away"""

    async def put(self, **members: Any) -> str:
        """A shadow policy for ``hello``, whose version 1 is live; its id."""
        async with self.stack.db.transaction() as conn:
            function = await self.stack.functions.lock(conn, Scope(), "hello")
            assert function is not None
            shadow = Shadow(new_id(), **{"target": "2", **members})
            await self.store.put(conn, function.id, ShadowPolicy(shadow), "test")
            await announce(conn, Scope(), "hello", await self.stack.functions.touch(conn, function.id))
        self.stack.catalog.forget(Scope(), "hello")
        return shadow.id

    async def call(self, **event: Any) -> CallResult:
        return await self.stack.invoke(json.dumps(event).encode())

    async def report(self, **wanted: int) -> ShadowRecord:
        """The report once it has counted this."""
        function = await self.stack.functions.lookup(Scope(), "hello")
        assert function is not None
        async with asyncio.timeout(20):
            while True:
                record = await self.store.get(function.id)
                assert record is not None
                if {name: getattr(record.tally, name) for name in wanted} == wanted:
                    return record
                await asyncio.sleep(0.02)


@pytest.fixture
async def rig(pg_dsn: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with ServiceGroup() as services, real_stack(pg_dsn, tmp_path) as stack:
        store = ShadowStore(stack.db)
        shadows = Shadows(store, SYSTEM_CLOCK)
        stack.executor.record = shadows.recorder(stack.executor.record)
        refused: list[str] = []
        stack.executor.refused = shadows.refusals(lambda _scope, _function, code: refused.append(code))
        shadows.run_on(stack.executor)
        await services.start(shadows)
        await stack.deploy(ONE)
        await stack.deploy(TWO)
        async with stack.db.transaction() as conn:
            function = await stack.functions.lock(conn, Scope(), "hello")
            assert function is not None
            settings = FunctionSettings(Recorded(capture=Capture(redact=("/secret",))))
            await announce(
                conn, Scope(), "hello", await stack.functions.save(conn, function.id, settings=settings, head=2, live=1)
            )
        yield Rig(stack, store, refused)


async def test_copies_are_compared_and_thrown_away(rig: Rig) -> None:
    """Own instances, no record, no trace of a copy's failure; differences are kept with redaction, beside what is ignored."""
    await rig.put(ignore=("/at",))
    assert [(await rig.call(n=n)).version for n in (1, 2, 7)] == [1, 1, 1]
    await rig.call(leak=True)
    assert (await rig.call(fail=True)).error is None
    record = await rig.report(matched=2, differed=3)
    assert (record.tally.errors, record.tally.skipped) == (0, 0)
    assert record.tally.primary_ms > 0
    assert record.tally.shadow_ms > 0
    failed, leaked, seventh = sorted(record.tally.samples, key=lambda sample: str(sample["differences"]))
    assert (failed["status"], failed["shadow_status"], failed["differences"]) == ("success", "ValueError", [])
    assert leaked["differences"] == [{"path": "/secret"}]
    assert seventh["differences"] == [{"path": "/n", "from": 7, "to": 8}]
    assert (seventh["version"], seventh["shadow_version"]) == (1, 2)
    assert {call.trigger for call, _, _ in rig.stack.records} == {"http"}, "copies leave no record"
    assert len(rig.stack.records) == 5
    assert (await rig.call(n=7)).output is not None
    await rig.put(compare="status")
    await rig.call(n=7)
    await rig.call(fail=True)
    await rig.report(matched=1, differed=1)
    await rig.put(target="9")
    assert (await rig.call(n=7)).error is None
    await rig.report(errors=1)
    with pytest.raises(NovaError):
        await rig.stack.invoke(qualifier="9")
    assert rig.refused == ["not_found"], "what becomes of a copy is in the report only"
    await rig.put(compare="none")
    before = len(rig.stack.records)
    assert (await rig.stack.invoke(b"{}", qualifier="2")).version == 2, "the target itself is not copied"
    assert len(rig.stack.records) == before + 1
    await rig.call(n=7)
    await rig.report(uncompared=1, matched=0, errors=0)


async def test_a_share_is_copied_within_a_limit_and_delays_nobody(rig: Rig) -> None:
    await rig.put(compare="status", max_inflight=1)
    await rig.call(n=0)
    await rig.report(matched=1)
    first = await rig.call(sleep=1.0)
    assert first.duration_us < 900_000, "the copy sleeps, the call does not"
    for n in range(3):
        await rig.call(n=n)
    await rig.report(matched=2, skipped=3)
    shadow_id = await rig.put(compare="none", weight=5000, max_inflight=1000)
    before = len(rig.stack.records)
    for _ in range(40):
        await rig.call()
    ids = [call.request_id for call, _, _ in rig.stack.records[before:]]
    chosen = sum(sampled(5000, f"{shadow_id}\0{request_id}") for request_id in ids)
    assert 5 <= chosen <= 35
    await rig.report(uncompared=chosen)


async def test_a_copy_cannot_write_the_state() -> None:
    """It runs beside the call that it copies: what it wrote, that call's function would find."""
    guest = Guest(GuestApi(StateStore(None, lambda: 0), LimitSettings()), shadowed(make_snapshot()))  # type: ignore[arg-type]
    for kind in (frames.STATE_PUT, frames.STATE_DELETE):
        with pytest.raises(NovaError) as refusal:
            await guest.serve(Question(kind, {"key": "k"}, b"1", "r", 0.0, b"{}"))
        assert refusal.value.code == "forbidden"
