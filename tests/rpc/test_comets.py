"""Several comets behind one Invoker: who gets calls, who does not, and what is sent again.

The first part uses connections of the test's own, to make every refusal there is; the second real servers, in processes that are
stopped and killed.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.node import SILENT_S, NodeReport, WarmPool
from nova.domain.pieces import Pieces
from nova.domain.ports import Warmth
from nova.domain.stream import Sink
from nova.errors import FunctionError, NovaError, draining
from nova.rpc import comets as module
from nova.rpc import roster
from nova.rpc.comets import Comets
from nova.rpc.failures import lost, out_of_time, remote_failure, unreachable
from nova.rpc.remote import CometConnection
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.nodes import NodeStore
from tests.mock_clock import MockClock
from tests.rpc.planes import ASSERTIONS, TOKEN, make_call, until

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


class Fake:
    """A connection whose other end does what the test says."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.speech: asyncio.Queue[NodeReport | NovaError | None] = asyncio.Queue()
        self.calls: list[CallRequest] = []
        self.scaled: list[int] = []
        self.fails: Callable[[], NovaError | None] = lambda: None
        self.hold: asyncio.Event | None = None
        self.starts = False
        self.closed = False
        self.error: FunctionError | None = None
        self.app: Callable[..., Awaitable[None]] | None = None

    def says(self, **values: Any) -> None:
        self.speech.put_nowait(NodeReport(self.address, self.address, self.address, **values))

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def reports(self) -> AsyncIterator[NodeReport]:
        while (said := await self.speech.get()) is not None:
            if isinstance(said, NovaError):
                raise said
            yield said

    async def _take(self) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if (failure := self.fails()) is not None:
            raise failure

    async def invoke(self, call: CallRequest) -> CallResult:
        self.calls.append(call)
        await self._take()
        output = None if self.error else self.address.encode()
        return CallResult(call.request_id, 1, output, self.error, 1, False, "i")

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        self.calls.append(call)
        if self.starts:
            sink.started(1, cold_start=False)
        await self._take()
        sink.started(1, cold_start=False)
        return CallResult(call.request_id, 1, self.address.encode(), None, 1, False, "i")

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        self.calls.append(call)
        await self._take()
        return Accepted(call.request_id, "queued")

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        await self._take()
        self.scaled.append(replicas)
        return replicas

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        await self._take()
        self.scaled.append(replicas)
        return Warmth(1, replicas - 1)

    async def evict(self, scope: Scope, function: str) -> int:
        await self._take()
        return 1

    async def proxy(self, scope: Any, receive: Any, send: Any) -> None:
        if self.app is not None:
            return await self.app(scope, receive, send)
        await self._take()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-comet", self.address.encode())]})
        return None


class Fakes(dict[str, Fake]):
    def __call__(self, address: str) -> Fake:
        self[address] = Fake(address)
        return self[address]


@asynccontextmanager
async def cluster(
    *names: str, silent: tuple[str, ...] = (), clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[tuple[Comets, Fakes]]:
    """Comets that have spoken, but for ``silent``. They speak when a test says so, and their silence is no matter of its pace."""
    fakes = Fakes()
    comets = Comets(fakes, addresses=names, clock=clock)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(roster, "SILENT_S", 600)
        await comets.start()
        try:
            for name in names:
                if name not in silent:
                    fakes[name].says()
            await until(lambda: len(comets.reports()) == len(names) - len(silent))
            yield comets, fakes
        finally:
            await comets.close()


def counts(fakes: Fakes) -> dict[str, int]:
    return {name: len(fake.calls) for name, fake in fakes.items()}


async def refused(comets: Comets, **values: Any) -> NovaError:
    with pytest.raises(NovaError) as caught:
        await comets.invoke(make_call(**values))
    return caught.value


async def test_a_stream_goes_elsewhere_only_while_nothing_of_it_has_begun() -> None:
    async with cluster("a", "b") as (comets, fakes):
        one = await comets.stream(make_call(), Pieces())
        fakes[(one.output or b"").decode()].fails = lambda: remote_failure("queue_full", "no room", "no")
        other = await comets.stream(make_call(), Pieces())
        assert {one.output, other.output} == {b"a", b"b"}
        for fake in fakes.values():
            fake.calls.clear()
            fake.starts = True
            fake.fails = lambda: remote_failure("queue_full", "no room", "no")
        with pytest.raises(NovaError) as caught:
            await comets.stream(make_call(), Pieces())
        assert caught.value.code == "queue_full"
        assert sum(len(fake.calls) for fake in fakes.values()) == 1


async def test_calls_at_once_are_spread_and_followed_by_the_warm_one() -> None:
    async with cluster("a", "b") as (comets, fakes):
        hold = asyncio.Event()
        for fake in fakes.values():
            fake.hold = hold
        tasks = [asyncio.create_task(comets.invoke(make_call())) for _ in range(10)]
        await until(lambda: sum(counts(fakes).values()) == 10)
        assert counts(fakes) == {"a": 5, "b": 5}
        hold.set()
        await asyncio.gather(*tasks)
        for fake in fakes.values():
            fake.calls.clear()
        for _ in range(5):
            await comets.invoke(make_call())
        assert sorted(counts(fakes).values()) == [0, 5]


async def test_warmth_attracts_calls_but_not_all_of_them() -> None:
    """32 calls at once, every slot warm on one node: the other one still takes its part."""
    async with cluster("a", "b") as (comets, fakes):
        fakes["a"].says(warm=(WarmPool("default", "default", "hello", 1, 64, 64),), inflight=0)
        await until(lambda: any(report.warm for report in comets.reports()))
        hold = asyncio.Event()
        for fake in fakes.values():
            fake.hold = hold
        tasks = [asyncio.create_task(comets.invoke(make_call())) for _ in range(32)]
        await until(lambda: sum(counts(fakes).values()) == 32)
        assert 16 < counts(fakes)["a"] <= 1.25 * 16 + 1
        hold.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("state", ["cordoned", "draining"])
async def test_a_node_that_an_operator_took_out_gets_nothing(state: str) -> None:
    async with cluster("a", "b") as (comets, fakes):
        fakes["a"].says(state=state)
        await until(lambda: {report.state for report in comets.reports()} == {state, "active"})
        for _ in range(5):
            await comets.invoke(make_call())
        assert counts(fakes) == {"a": 0, "b": 5}
        assert comets.standing() == "ok"
        fakes["a"].says()
        fakes["b"].says(state=state)
        await until(lambda: [report.state for report in comets.reports()] == ["active", state])
        await comets.invoke(make_call())
        assert counts(fakes) == {"a": 1, "b": 5}


@pytest.mark.parametrize(
    "failure",
    [
        unreachable("x"),
        draining(),
        NovaError("queue_full", "no"),
        NovaError("capacity", "no"),
        NovaError("queue_timeout", "no"),
    ],
)
async def test_what_was_not_taken_goes_elsewhere(failure: NovaError) -> None:
    async with cluster("a", "b") as (comets, fakes):
        fakes["a"].fails = lambda: failure
        for _ in range(4):
            assert (await comets.invoke(make_call())).output == b"b"
        assert counts(fakes)["b"] == 4


async def test_it_is_tried_three_times_in_all() -> None:
    async with cluster("a", "b", "c", "d") as (comets, fakes):
        for fake in fakes.values():
            fake.fails = lambda: NovaError("queue_full", "no", retry_after_s=1)
        assert (await refused(comets)).code == "queue_full"
        assert sorted(counts(fakes).values()) == [0, 1, 1, 1]


async def test_one_node_alone_is_not_asked_again_when_it_is_full() -> None:
    async with cluster("a") as (comets, fakes):
        fakes["a"].fails = lambda: NovaError("queue_full", "no", retry_after_s=1)
        assert (await refused(comets)).code == "queue_full"
        assert counts(fakes) == {"a": 1}


@pytest.mark.parametrize(
    ("failure", "with_key"),
    [
        (lost("x"), 2),
        (remote_failure("dependency_unavailable", "database", "unknown"), 2),
        (out_of_time("unknown"), 1),
        (NovaError("not_found", "no"), 1),
        (NovaError("instance_lost", "died"), 1),
        (NovaError("bad_payload", "no"), 1),
    ],
)
async def test_what_may_have_begun_is_sent_again_only_with_an_idempotency_key(
    failure: NovaError, with_key: int
) -> None:
    """The platform never runs a call twice unless the caller said that it may."""
    async with cluster("a", "b") as (comets, fakes):
        for fake in fakes.values():
            fake.fails = lambda: failure
        assert (await refused(comets)).code == failure.code
        assert sum(counts(fakes).values()) == 1
        assert (await refused(comets, idempotency_key="k")).code == failure.code
        assert sum(counts(fakes).values()) == 1 + with_key


async def test_one_that_refused_gets_nothing_for_a_second() -> None:
    clock = MockClock()
    async with cluster("a", "b", clock=clock) as (comets, fakes):
        await comets.invoke(make_call())
        home = max(fakes, key=lambda name: counts(fakes)[name])
        fakes[home].fails = lambda: unreachable(home)
        await comets.invoke(make_call())
        assert comets.standing() == "degraded"
        fakes[home].fails = lambda: None
        for _ in range(20):
            await comets.invoke(make_call())
            await clock.advance(0.95 * module.REFUSED_S / 20)
        assert counts(fakes)[home] == 2
        await clock.advance(module.REFUSED_S)
        await until(lambda: comets.standing() == "ok")


async def test_one_that_fails_again_and_again_is_left_out_but_never_the_last() -> None:
    async with cluster("a", "b", clock=MockClock()) as (comets, fakes):
        for fake in fakes.values():
            fake.fails = lambda: lost("x")
        for _ in range(30):
            await refused(comets)
        assert comets.standing() == "degraded"
        left_out = min(counts(fakes), key=lambda name: counts(fakes)[name])
        assert counts(fakes)[left_out] == module.FAILURES
        fakes[left_out].says()  # the stream it had goes on: nothing changes
        await refused(comets)
        assert counts(fakes)[left_out] == module.FAILURES


async def test_errors_of_functions_are_no_failures_of_nodes() -> None:
    async with cluster("a", "b") as (comets, fakes):
        for fake in fakes.values():
            fake.error = FunctionError("ValueError", "no")
        for _ in range(2 * module.FAILURES):
            assert (await comets.invoke(make_call())).error is not None
        assert comets.standing() == "ok"


async def test_silence_ends_calls_and_speech_begins_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster("a", "b", silent=("b",)) as (comets, fakes):
        assert comets.standing() == "degraded"
        monkeypatch.setattr(roster, "SILENT_S", 0.2)
        fakes["a"].says()
        await until(lambda: comets.standing() == "down")
        fakes["b"].says()
        assert (await comets.invoke(make_call())).output == b"b"
        assert counts(fakes) == {"a": 0, "b": 1}


async def test_a_broken_stream_counts_at_once_and_a_new_one_forgives() -> None:
    async with cluster("a", "b") as (comets, fakes):
        fakes["a"].fails = lambda: unreachable("a")
        fakes["a"].speech.put_nowait(lost("a"))
        await until(lambda: comets.standing() == "degraded")
        await comets.invoke(make_call())
        assert counts(fakes) == {"a": 0, "b": 1}
        fakes["a"].says()
        await until(lambda: comets.standing() == "ok")


async def test_calls_wait_a_moment_for_the_first_comet_and_for_a_successor() -> None:
    async with cluster("a", silent=("a",)) as (comets, fakes):
        waiting = asyncio.create_task(comets.invoke(make_call()))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        fakes["a"].says()
        assert (await waiting).output == b"a"
        failures = [draining()]
        fakes["a"].fails = lambda: failures.pop() if failures else None
        waiting = asyncio.create_task(comets.invoke(make_call()))
        await until(lambda: not failures)
        fakes["a"].speech.put_nowait(None)  # it drains: its stream ends, and the next one is its successor's
        fakes["a"].says()
        async with asyncio.timeout(20):
            assert (await waiting).output == b"a"


async def test_nobody_is_waited_for_longer_than_the_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    async with cluster("a", silent=("a",)) as (comets, _):
        assert (await refused(comets, timeout_ms=50)).code == "timeout"
        failure = await refused(comets, timeout_ms=60_000)
        assert (failure.code, failure.retry_after_s) == ("dependency_unavailable", 1)


async def test_accepting_is_placed_like_a_call() -> None:
    async with cluster("a", "b") as (comets, fakes):
        fakes["a"].fails = lambda: unreachable("a")
        for _ in range(3):
            assert (await comets.accept(make_call(), AsyncOptions())).status == "queued"
        fakes["b"].fails = lambda: lost("b")
        with pytest.raises(NovaError, match="broke"):
            await comets.accept(make_call(), AsyncOptions())


async def test_replicas_are_shared_and_taken_back() -> None:
    async with cluster("a", "b") as (comets, fakes):
        assert await comets.scale(Scope(), "hello", 5, ttl_s=60) == 5
        assert sorted(fake.scaled[-1] for fake in fakes.values()) == [2, 3]
        assert await comets.scale(Scope(), "hello", 1, ttl_s=60) == 1
        assert sorted(fake.scaled[-1] for fake in fakes.values()) == [0, 1]
        assert await comets.prewarm(Scope(), "hello", 5, qualifier=None, ttl_s=60) == Warmth(2, 3)
        assert sorted(fake.scaled[-1] for fake in fakes.values()) == [2, 3]
        before = [len(fake.scaled) for fake in fakes.values()]
        assert await comets.scale(Scope(), "other", 0, ttl_s=60) == 0
        assert [len(fake.scaled) for fake in fakes.values()] == before
        assert await comets.evict(Scope(), "hello") == 2
        for fake in fakes.values():
            fake.fails = lambda: unreachable("x")
        assert await comets.evict(Scope(), "hello") == 0
        with pytest.raises(NovaError):
            await comets.scale(Scope(), "hello", 5, ttl_s=60)
        with pytest.raises(NovaError):
            await comets.prewarm(Scope(), "hello", 5, qualifier=None, ttl_s=60)


async def test_a_request_is_proxied_elsewhere_only_untouched() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x"}

    async def read_then_fail(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise unreachable("x")

    async with cluster("a", "b") as (comets, fakes):
        fakes["a"].fails = lambda: unreachable("a")
        for _ in range(2):
            await comets.proxy({"type": "http"}, receive, send)
        assert [message["headers"] for message in sent] == [[(b"x-comet", b"b")]] * 2
        fakes["b"].app = read_then_fail
        with pytest.raises(NovaError, match="does not answer"):
            await comets.proxy({"type": "http"}, receive, send)


async def test_comets_are_found_in_the_table_and_forgotten(database: Database) -> None:
    """A comet that registers gets calls within the second; one that leaves is let go."""
    fakes, store, listener = Fakes(), NodeStore(database), Listener(database.dsn)
    await store.register("worker", "corona", "w", "w:1", info={}, load={}, labels={})
    await listener.start()
    comets = Comets(fakes, nodes=store, notifications=listener)
    await comets.start()
    try:
        await store.register("n1", "comet", "n1", "a:1", info={}, load={}, labels={})
        await until(lambda: "a:1" in fakes)
        fakes["a:1"].says()
        assert (await comets.invoke(make_call())).output == b"a:1"
        await store.remove("n1")
        await store.register("n2", "comet", "n2", "b:1", info={}, load={}, labels={})
        await until(lambda: "b:1" in fakes)
        assert not fakes["a:1"].closed, "it still speaks: only its row is gone"
        fakes["a:1"].speech.put_nowait(None)
        fakes["b:1"].says()
        await until(lambda: len(comets.reports()) == 1)
        await store.remove("n2")
        await until(lambda: fakes["a:1"].closed)
        assert set(fakes) == {"a:1", "b:1"}
    finally:
        await comets.close()
        await listener.close()
    assert fakes["b:1"].closed


# Real servers


class Process:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port
        self.address = f"127.0.0.1:{port}"

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


async def comet(name: str, port: int = 0) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.rpc.comet_process",
        f"127.0.0.1:{port}",
        name,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return Process(process, int(await process.stdout.readline()))


@asynccontextmanager
async def real(*names: str) -> AsyncIterator[tuple[Comets, dict[str, Process]]]:
    async with AsyncExitStack() as stack:
        processes = {}
        for name, process in zip(names, await asyncio.gather(*(comet(name) for name in names)), strict=True):
            processes[name] = process
            stack.push_async_callback(process.end)
        comets = Comets(
            lambda address: CometConnection(address, TOKEN, ASSERTIONS),
            addresses=[process.address for process in processes.values()],
        )
        await comets.start()
        stack.push_async_callback(comets.close)
        await until(lambda: comets.standing() == "ok", 10)
        yield comets, processes


def waiting(seconds: float, **values: Any) -> CallRequest:
    return make_call(json.dumps({"wait_s": seconds}).encode(), **values)


async def who(comets: Comets) -> str:
    output = (await comets.invoke(waiting(0))).output
    assert output is not None
    return str(json.loads(output))


async def in_flight(comets: Comets, count: int, seconds: float = 60, **values: Any) -> list[asyncio.Task[CallResult]]:
    """Long calls, of which each of two comets has half."""
    tasks = [asyncio.create_task(comets.invoke(waiting(seconds, **values))) for _ in range(count)]
    await until(lambda: [report.inflight for report in comets.reports()] == [count / 2] * 2)
    return tasks


async def test_a_killed_comet_ends_its_calls_and_gets_no_others() -> None:
    """Calls under it end as ``instance_lost`` (502), those that come go elsewhere at once."""
    async with real("a", "b") as (comets, processes):
        tasks = await in_flight(comets, 8)
        processes["a"].signal(signal.SIGKILL)
        await until(lambda: comets.standing() == "degraded")
        for _ in range(20):
            assert await who(comets) == "b"
        await until(lambda: sum(task.done() for task in tasks) == 4)
        codes = {task.exception().code for task in tasks if task.done()}  # type: ignore[union-attr]
        assert codes == {"instance_lost"}
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_stopped_comet_is_noticed_in_three_seconds_and_comes_back() -> None:
    """SC9: SIGSTOP. Its calls end at their deadline, the others go elsewhere; after SIGCONT it gets calls again."""
    async with real("a", "b") as (comets, processes):
        assert SILENT_S <= 3
        tasks = await in_flight(comets, 8, timeout_ms=5000)
        processes["a"].signal(signal.SIGSTOP)
        await until(lambda: comets.standing() == "degraded")
        for _ in range(20):
            assert await who(comets) == "b"
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {error.code for error in errors} == {"timeout"}  # type: ignore[union-attr]
        processes["a"].signal(signal.SIGCONT)
        await until(lambda: comets.standing() == "ok")


async def test_a_draining_comet_answers_what_it_has_and_refuses_the_rest() -> None:
    """No call is lost: what is in flight is answered, what comes later goes elsewhere."""
    async with real("a", "b") as (comets, processes):
        tasks = await in_flight(comets, 8, seconds=3)
        processes["a"].signal(signal.SIGTERM)
        await until(lambda: [report.name for report in comets.reports() if report.state == "active"] == ["b"])
        assert {await who(comets) for _ in range(20)} == {"b"}
        answers = {json.loads((await task).output or b"") for task in tasks}
        assert answers == {"a", "b"}


async def test_a_comet_that_is_replaced_under_load_loses_no_call() -> None:
    """One comet alone: its successor binds the same port, then it drains."""
    async with real("a") as (comets, processes):
        outputs: list[str] = []
        stop = False

        async def load() -> None:
            while not stop:
                outputs.append(await who(comets))

        callers = [asyncio.create_task(load()) for _ in range(4)]
        await until(lambda: len(outputs) > 50)
        successor = await comet("a2", processes["a"].port)
        try:
            processes["a"].signal(signal.SIGTERM)
            await until(lambda: outputs[-1] == "a2")
            stop = True
            await asyncio.gather(*callers)
        finally:
            await successor.end()
