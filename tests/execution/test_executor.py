"""Calls through the executor, on a fake backend: who gets what answer, and that every slot comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from msgspec.structs import asdict

from nova.clock import SYSTEM_CLOCK
from nova.config import PoolSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.stream import Piece
from nova.errors import FunctionError, NovaError
from nova.events.refusals import never_began
from nova.execution.backends.base import WorkerResult
from nova.execution.boots import Booter
from nova.execution.executor import Executor
from nova.execution.fleet import InstanceFleet
from nova.standstill import Standstill
from tests.execution.fakes import FakeArtifacts, FakeBackend, OneBackend, make_call, make_snapshot
from tests.execution.sinks import Reader
from tests.mock_clock import settle

pytestmark = pytest.mark.anyio


class Shelf:
    """A catalog of given snapshots. :attr:`asked` counts the ways to the store."""

    def __init__(self) -> None:
        self.snapshots: dict[tuple[str, str | None], FunctionSnapshot] = {}
        self.asked = 0
        self.known = True

    def put(self, snapshot: FunctionSnapshot, qualifier: str | None = None) -> None:
        self.snapshots[snapshot.name, qualifier] = snapshot

    def peek(self, call: CallRequest) -> FunctionSnapshot | None:
        return self.snapshots.get((call.function, call.qualifier)) if self.known else None

    async def resolve(self, call: CallRequest, deadline: float | None = None) -> FunctionSnapshot:
        self.asked += 1
        await asyncio.sleep(0)
        try:
            return self.snapshots[call.function, call.qualifier]
        except KeyError:
            raise NovaError("not_found", call.function) from None

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Rig:
    def __init__(self, drain_s: float = 0.05) -> None:
        self.shelf: Any = Shelf()
        self.backend = FakeBackend()
        self.records: list[tuple[CallRequest, FunctionSnapshot, CallResult]] = []
        booter = Booter(FakeArtifacts(), OneBackend(self.backend), SYSTEM_CLOCK)
        self.fleet = InstanceFleet(booter, PoolSettings())
        self.refusals: list[tuple[str, str]] = []
        self.executor = Executor(
            self.shelf,
            self.fleet,
            lambda *done: self.records.append(done),
            refused=lambda _scope, function, code: self.refusals.append((function, code)),
            drain_s=drain_s,
        )

    def invoke(self, **changes: Any) -> "asyncio.Task[CallResult]":
        return asyncio.create_task(self.executor.invoke(make_call(**changes)))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.shelf.put(make_snapshot())
    await rig.executor.start()
    yield rig
    await rig.executor.close()
    assert rig.executor.active == 0
    assert rig.fleet.size == 0


async def test_a_call_is_answered_and_recorded_once(rig: Rig) -> None:
    call = make_call(payload=b'{"a": 1}')
    result = await rig.executor.invoke(call)
    assert result.output == b'{"a": 1}'
    assert (result.request_id, result.version, result.cold_start, result.source) == (
        call.request_id,
        1,
        True,
        "template",
    )
    assert [record[2] for record in rig.records] == [result]
    warm = await rig.executor.invoke(make_call())
    assert (warm.cold_start, warm.source, warm.instance_id) == (False, "warm", result.instance_id)
    assert (warm.phases.instance_us, warm.phases.init_us) == (0, 0)


async def test_the_phases_never_add_up_to_more_than_the_call(rig: Rig) -> None:
    for result in await asyncio.gather(*(rig.invoke() for _ in range(50))):
        parts = asdict(result.phases).values()
        assert all(part >= 0 for part in parts)
        assert sum(parts) <= result.duration_us + 4


async def test_what_loading_printed_is_in_the_log_of_the_cold_call(rig: Rig) -> None:
    rig.backend.init_prints = "imported\n"
    first, second = await rig.invoke(), await rig.invoke()
    assert (first.stdout, second.stdout) == ("imported\n", "")


async def test_the_context_has_the_calls_own_values(rig: Rig) -> None:
    call = make_call(traceparent="00-aa-bb-01", timeout_ms=60_000, received=SYSTEM_CLOCK.monotonic())
    await rig.executor.invoke(call)
    (sent,) = rig.backend.channels[0].calls
    assert sent.context.startswith(b'{"request_id": "%b"' % call.request_id.encode())
    assert b'"00-aa-bb-01"' in sent.context
    assert sent.payload == call.payload


async def test_a_hundred_call_chains_use_one_pool(rig: Rig) -> None:
    """EX3: what differs between calls is no part of the pool's key."""
    for number in range(100):
        await rig.invoke(traceparent=f"00-{number:032x}-{number:016x}-01", sticky_key=str(number))
    assert rig.backend.created == 1
    assert len(rig.executor.stats()["pools"]) == 1


async def test_ten_thousand_calls_leave_their_snapshot_as_it_was(rig: Rig) -> None:
    """EX2: nothing of a call stays on the snapshot, and each caller gets the answer to their own input."""
    before = repr(rig.shelf.snapshots["hello", None])
    for lap in range(10):
        inputs = [b'{"n": %d}' % (lap * 1000 + number) for number in range(1000)]
        results = await asyncio.gather(*(rig.invoke(payload=payload) for payload in inputs))
        assert [result.output for result in results] == inputs
    assert repr(rig.shelf.snapshots["hello", None]) == before
    assert len({record[0].request_id for record in rig.records}) == 10_000


async def test_a_functions_error_is_a_result(rig: Rig) -> None:
    rig.backend.hold = True
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    channel = rig.backend.channels[0]
    error = FunctionError("ValueError", "bad date")
    channel.answer(next(iter(channel.pending)), WorkerResult(None, error, stderr="Traceback…"))
    result = await task
    assert (result.output, result.error, result.stderr) == (None, error, "Traceback…")
    assert rig.executor.stats()["ready"] == 1, "the instance is well"


@pytest.mark.parametrize(
    ("worker_error", "code", "status", "reason"),
    [("Nova.Timeout", "timeout", 504, "timeout"), ("Nova.InstanceLost", "instance_lost", 502, "crashed")],
)
async def test_what_is_not_the_functions_fault_is_a_refusal(
    rig: Rig, worker_error: str, code: str, status: int, reason: str
) -> None:
    """EX1: the call was sent once, is recorded once, and nobody sends it again."""
    rig.backend.hold = True
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    channel = rig.backend.channels[0]
    channel.lose(worker_error)
    with pytest.raises(NovaError) as refused:
        await task
    assert (refused.value.code, refused.value.status) == (code, status)
    assert len(channel.calls) == 1
    assert [record[2].error.type for record in rig.records if record[2].error] == [worker_error]
    await settle()
    assert rig.fleet.size == 0
    assert [why for _, why in rig.backend.stopped] == [reason]
    assert rig.backend.created == 1


async def test_a_crash_is_the_functions_error_and_ends_the_instance(rig: Rig) -> None:
    rig.backend.hold = True
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    rig.backend.channels[0].lose("Nova.OutOfMemory")
    result = await task
    assert result.error is not None
    assert result.error.type == "Nova.OutOfMemory"
    rig.backend.hold = False
    again = await rig.invoke()
    assert again.instance_id != result.instance_id


async def test_an_instance_that_died_before_the_call_was_sent_is_replaced(rig: Rig) -> None:
    """EX1: nothing was delivered, so another instance may take the call."""
    first = await rig.invoke()
    channel = rig.backend.channels[0]
    channel.usable = False  # it died in this very moment: nobody was told yet
    second = await rig.invoke()
    assert second.instance_id != first.instance_id
    assert len(channel.calls) == 1


async def test_cancelling_a_call_frees_its_slot_and_is_recorded(rig: Rig) -> None:
    """EX7: the caller went away: the instance is destroyed, and the next call gets another."""
    rig.backend.hold = True
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    assert rig.fleet.size == 0
    assert [record[2].error.type for record in rig.records if record[2].error] == ["Nova.Cancelled"]


async def test_a_call_can_begin_without_a_task(rig: Rig) -> None:
    """Its end comes once, as a result or a refusal, after a cold start, a wait for a slot, or at once."""
    ends: list[CallResult | NovaError] = []
    rig.backend.hold = True
    flights = [rig.executor.begin(make_call(payload=b"[%d]" % n), ends.append) for n in range(3)]
    assert rig.executor.active == 3
    for number in range(3):
        await rig.until(lambda: rig.backend.channels and any(channel.pending for channel in rig.backend.channels))
        channel = next(channel for channel in rig.backend.channels if channel.pending)
        channel.answer(next(iter(channel.pending)), WorkerResult(b"%d" % number, None))
        await settle()
    results = [end for end in ends if isinstance(end, CallResult)]
    assert sorted(result.output or b"" for result in results) == [b"0", b"1", b"2"]
    assert [record[2] for record in rig.records] == results
    assert any(result.cold_start for result in results)
    for flight in flights:
        assert flight is not None
        flight.cancel()  # too late
    assert (len(rig.records), rig.executor.active) == (3, 0)

    assert rig.executor.begin(make_call(), ends.append) is not None
    next(channel for channel in rig.backend.channels if channel.pending).lose()
    await settle()
    assert isinstance(ends[-1], NovaError)
    assert ends[-1].code == "instance_lost"
    assert (len(ends), rig.executor.active) == (4, 0)


async def test_a_queued_call_without_a_task_is_told_what_becomes_of_it(rig: Rig) -> None:
    """Its time is up, its caller leaves, the code does not load, the function changes, nobody knows the function."""
    ends: list[CallResult | NovaError] = []
    boot = rig.backend.gate = asyncio.Event()
    assert rig.executor.begin(make_call(timeout_ms=300, received=SYSTEM_CLOCK.monotonic()), ends.append) is not None
    leaving = rig.executor.begin(make_call(), ends.append)
    assert leaving is not None
    leaving.cancel()
    async with asyncio.timeout(20):
        await rig.until(lambda: ends)
    assert isinstance(ends[0], NovaError)
    assert ends[0].code == "timeout"
    assert rig.refusals == [("hello", "timeout")]
    assert rig.executor.active == 0

    assert rig.executor.begin(make_call(), ends.append) is not None
    rig.shelf.put(make_snapshot(version=2))
    rig.fleet.evict(Scope(), "hello", ())
    boot.set()
    async with asyncio.timeout(20):
        await rig.until(lambda: len(ends) == 2)
    assert isinstance(ends[1], CallResult)
    assert ends[1].version == 2

    rig.fleet.evict(Scope(), "hello", ())
    rig.backend.init_error = FunctionError("SyntaxError", "line 1")
    assert rig.executor.begin(make_call(), ends.append) is not None
    async with asyncio.timeout(20):
        await rig.until(lambda: len(ends) == 3)
    assert isinstance(ends[2], CallResult)
    assert ends[2].error is not None
    assert ends[2].error.type == "SyntaxError"
    assert rig.executor.begin(make_call("unknown"), ends.append) is None


async def test_a_call_without_a_task_can_be_cancelled(rig: Rig) -> None:
    ends: list[CallResult | NovaError] = []
    await rig.executor.invoke(make_call())
    rig.backend.hold = True
    flight = rig.executor.begin(make_call(), ends.append)
    assert flight is not None
    flight.cancel()
    await settle()
    assert (ends, rig.executor.active, rig.fleet.size) == ([], 0, 0)
    error = rig.records[-1][2].error
    assert error is not None
    assert error.type == "Nova.Cancelled"
    rig.executor.drain()
    assert rig.executor.begin(make_call(), ends.append) is None


async def test_code_that_does_not_load_is_the_functions_error(rig: Rig) -> None:
    rig.backend.init_error = FunctionError("ModuleNotFoundError", "No module named 'nowhere'")
    result = await rig.invoke()
    assert result.error == rig.backend.init_error
    assert result.stdout == "loading\n"
    assert result.cold_start
    assert len(rig.records) == 1
    assert rig.fleet.size == 0, "the instance that could not load is gone"


async def test_a_caller_without_time_gets_timeout_and_nothing_is_sent(rig: Rig) -> None:
    await rig.invoke()
    late = make_call(timeout_ms=5, received=SYSTEM_CLOCK.monotonic() - 1)
    with pytest.raises(NovaError, match="timeout"):
        await rig.executor.invoke(late)
    assert len(rig.backend.channels[0].calls) == 1
    assert rig.executor.stats()["inflight"] == 0
    assert rig.refusals == [("hello", "timeout")]


@pytest.mark.parametrize(("timeout_ms", "expected"), [(None, 30.0), (5000, 5.0), (90_000, 30.0)])
async def test_the_shorter_deadline_is_enforced(rig: Rig, timeout_ms: int | None, expected: float) -> None:
    """EX7: the caller's deadline or the function's timeout, whichever is first."""
    began = SYSTEM_CLOCK.monotonic()
    await rig.executor.invoke(make_call(timeout_ms=timeout_ms, received=began))
    (sent,) = rig.backend.channels[0].calls
    assert sent.deadline - began == pytest.approx(expected, abs=1)


async def test_a_function_without_a_url_is_not_found_there(rig: Rig) -> None:
    rig.shelf.put(make_snapshot("inner", function_url=False))
    with pytest.raises(NovaError, match="not_found"):
        await rig.invoke(name="inner", trigger="url")
    assert (await rig.invoke(name="inner")).output == b"{}"
    assert (await rig.invoke(trigger="url")).output == b"{}"
    assert rig.refusals == [("inner", "not_found")]


async def test_a_warm_call_asks_nobody_but_memory(rig: Rig) -> None:
    """EX16: after the first call the catalog's store, the artifacts and the backend are not asked again."""
    await rig.invoke()
    created, inits = rig.backend.created, len(rig.backend.inits)
    for _ in range(100):
        await rig.invoke()
    assert (rig.shelf.asked, rig.backend.created, len(rig.backend.inits)) == (0, created, inits)


async def test_waiters_of_a_drained_pool_are_served_by_the_new_version(rig: Rig) -> None:
    """PO9: a caller that waits while its function is deployed gets the new version, not an error."""
    rig.shelf.put(make_snapshot(max_replicas=1))
    rig.backend.hold = True
    running = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    waiting = rig.invoke()
    await settle()
    newer = make_snapshot(version=2)
    rig.shelf.put(newer)
    rig.fleet.evict(Scope(), "hello", {newer.pool_key})
    await rig.until(lambda: len([channel for channel in rig.backend.channels if channel.pending]) == 2)
    rig.backend.answer_all()
    assert [result.version for result in await asyncio.gather(running, waiting)] == [1, 2]


async def test_closing_waits_for_calls_then_ends_them() -> None:
    """EX13: new calls are refused with 503 and Retry-After; one that outlives the grace period ends as lost."""
    rig = Rig()
    rig.shelf.put(make_snapshot())
    await rig.executor.start()
    rig.backend.hold = True
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    closing = asyncio.create_task(rig.executor.close())
    await settle()
    with pytest.raises(NovaError) as refused:
        await rig.executor.invoke(make_call())
    assert (refused.value.code, refused.value.retry_after_s) == ("draining", 1)
    await closing
    with pytest.raises(NovaError, match="instance_lost"):
        await task
    assert rig.fleet.size == 0


async def test_closing_lets_a_call_finish_and_then_waits_no_longer() -> None:
    rig = Rig(drain_s=3600)
    rig.shelf.put(make_snapshot())
    rig.backend.hold = True
    await rig.executor.start()
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    closing = asyncio.create_task(rig.executor.close())
    await settle()
    rig.backend.answer_all()
    assert (await task).output == b'"ok"'
    await asyncio.wait_for(closing, 10)


async def test_instances_and_stats_tell_what_is_there(rig: Rig) -> None:
    rig.backend.hold = True
    task = rig.invoke()
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].pending)
    (info,) = await rig.executor.instances(Scope(), "hello")
    assert (info.function, info.version, info.backend, info.state, info.inflight) == ("hello", 1, "fake", "busy", 1)
    stats = rig.executor.stats()
    assert (stats["active"], stats["busy"], stats["inflight"]) == (1, 1, 1)
    rig.backend.answer_all()
    await task
    assert await rig.executor.instances(Scope("other"), "hello") == []


async def test_a_node_that_is_set_aside_refuses_until_it_is_taken_back(rig: Rig) -> None:
    rig.executor.set_aside(True)
    with pytest.raises(NovaError) as refused:
        await rig.executor.invoke(make_call())
    assert refused.value.code == "draining"
    rig.executor.set_aside(False)
    assert (await rig.invoke()).error is None
    rig.executor.drain()
    rig.executor.set_aside(False)  # the operator's word does not keep a process that ends
    with pytest.raises(NovaError) as ending:
        await rig.executor.invoke(make_call())
    assert ending.value.code == "draining"


async def test_a_stream_goes_through_the_same_guards_and_slots(rig: Rig) -> None:
    """EX9: the sink is told before the call is sent; the record says how much there was."""
    rig.backend.hold = True
    reader = Reader()
    call = make_call()
    task = asyncio.create_task(rig.executor.stream(call, reader))
    await rig.until(lambda: rig.backend.channels and rig.backend.channels[0].calls)
    (sent,) = rig.backend.channels[0].calls
    assert reader.begun == [(1, True)]
    assert b'"streaming": true' in sent.context
    assert sent.sink is not None
    sent.sink.piece(Piece("text", b'"abc"'))
    rig.backend.answer_all()
    assert (await task).output == b'"ok"'
    assert rig.records[0][2].output == b'{"streamed":{"pieces":1,"bytes":5}}'
    circle = make_call(chain=("hello",))
    with pytest.raises(NovaError, match="circle"):
        await rig.executor.stream(circle, reader)
    rig.executor.drain()
    with pytest.raises(NovaError) as refused:
        await rig.executor.stream(make_call(), reader)
    assert refused.value.code == "draining"
    assert len(reader.begun) == 1


async def test_what_may_be_taken_over_does_not_begin_after_a_standstill(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EV9: it lay in a socket or in a queue while others may have gone on; who waits for an answer has it all the same."""
    await rig.invoke()
    began = SYSTEM_CLOCK.monotonic()
    monkeypatch.setattr(Standstill, "doubts", lambda _self, received: received <= began)
    with pytest.raises(NovaError, match="stood still") as refused:
        await rig.invoke(trigger="event", received=began)
    assert (refused.value.code, never_began(refused.value)) == ("dependency_unavailable", True)
    ends: list[CallResult | NovaError] = []
    assert rig.executor.begin(make_call(trigger="async", received=began), ends.append) is not None
    await rig.until(lambda: ends)
    assert isinstance(ends[0], NovaError)
    assert ends[0].code == "dependency_unavailable"
    assert len(rig.records) == 1, "neither reached an instance"
    assert (await rig.invoke(trigger="http", received=began)).output == b"{}"
    assert (await rig.invoke(trigger="event", received=SYSTEM_CLOCK.monotonic())).output == b"{}"
