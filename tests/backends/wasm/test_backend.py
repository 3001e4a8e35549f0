"""The wasm backend: instances in the sandbox, whose calls end alone."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import (
    RESOURCES,
    InitFailed,
    InitSpec,
    Instance,
    InstanceSpec,
    LayerMount,
    WorkerCall,
    WorkerResult,
)
from nova.execution.backends.wasm.backend import WasmBackend
from tests.backends.wasm import case, modules
from tests.backends.wasm.harness import RUNTIME

pytestmark = [pytest.mark.anyio, pytest.mark.root]
LIMITS = Limits(memory_mb=32)


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WasmBackend]:
    folder = tmp_path_factory.mktemp("wasm")
    folder.chmod(0o755)
    async with case.backend(folder, f"wasm{uuid.uuid4().hex[:4]}") as made:
        yield made


def spec(folder: Path, module: str, limits: Limits = LIMITS) -> InstanceSpec:
    code = folder / uuid.uuid4().hex[:8]
    code.mkdir(mode=0o755)
    folder.chmod(0o755)
    (code / "handler.wasm").write_text(module)
    return InstanceSpec(uuid.uuid4().hex, "wasm", RUNTIME.version, code, limits, NetworkPolicy())


def init(concurrency: int = 1) -> InitSpec:
    return InitSpec(
        function_id="f",
        name="test",
        version=1,
        tenant="default",
        namespace="default",
        runtime="wasm",
        runtime_version=RUNTIME.version,
        mode="persistent",
        handler="handler.handle",
        entry="handler.wasm",
        entry_kind="handler",
        env={"GREETING": "hello"},
        memory_mb=LIMITS.memory_mb,
        timeout_s=30,
        concurrency=concurrency,
        open_files=100,
    )


async def call(instance: Instance, payload: bytes = b"{}", timeout_s: float = 20) -> WorkerResult:
    request_id = uuid.uuid4().hex
    context = b'{"request_id": "%b"}' % request_id.encode()
    return await instance.channel.call(WorkerCall(request_id, payload, context, time.monotonic() + timeout_s))


async def loaded(backend: WasmBackend, spec: InstanceSpec, concurrency: int = 1) -> Instance:
    instance = await backend.create(spec)
    await instance.channel.init(init(concurrency))
    return instance


def kind(result: WorkerResult) -> str:
    assert result.error is not None, result.output
    return result.error.type


async def test_it_says_what_it_is(backend: WasmBackend) -> None:
    outer = await backend._sandbox.capabilities()
    found = await backend.capabilities()
    assert (found.available, found.isolation, found.runtimes) == (True, "wasm", frozenset({"wasm"}))
    assert found.strength > outer.strength
    assert set(found.enforces) == set(RESOURCES)
    assert found.enforces["network_rules"] == found.enforces["net_io"] == "hard"
    assert (found.layers, found.volumes, found.snapshot) == (False, False, False)


async def test_what_it_does_not_run_is_refused(backend: WasmBackend, tmp_path: Path) -> None:
    """BE6: by name."""
    wanted = spec(tmp_path, modules.ECHO)
    layered = InstanceSpec(
        "i", "wasm", RUNTIME.version, None, LIMITS, NetworkPolicy(), layers=(LayerMount(tmp_path, "/layers/0"),)
    )
    python = InstanceSpec("i", "python", "3.11", wanted.code, LIMITS, NetworkPolicy())
    for refused, field in ((layered, "layers"), (python, "runtime")):
        with pytest.raises(NovaError, match=field) as caught:
            await backend.create(refused)
        assert caught.value.code == "unsupported"


async def test_an_instance_serves_calls_and_ends(backend: WasmBackend, tmp_path: Path) -> None:
    instance = await loaded(backend, spec(tmp_path, modules.LOUD), concurrency=4)
    try:
        results = await asyncio.gather(*(call(instance) for _ in range(8)))
        assert [(r.output, r.stdout, r.stderr) for r in results] == [(b"42", "printed\n", "warned\n")] * 8
        assert (await backend.stats(instance)).memory_bytes > 1 << 20
        assert await instance.channel.ping(5)
    finally:
        await backend.stop(instance, reason="test")
    assert not instance.channel.usable


async def test_a_call_that_is_stopped_leaves_its_instance_and_company_alone(
    backend: WasmBackend, tmp_path: Path
) -> None:
    """BE4: endless loops and hoards end by themselves; others in the same process notice nothing."""
    source = modules.reactor(
        f"""(if (i32.eq (i32.load8_u (local.get $start)) (i32.const 49)) (then (loop $again (br $again))))
        (if (i32.eq (i32.load8_u (local.get $start)) (i32.const 50)) (then
          (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)))
        {modules.INPUT}"""
    )
    instance = await loaded(backend, spec(tmp_path, source), concurrency=3)
    try:
        spinning = asyncio.create_task(call(instance, b"1", timeout_s=0.5))
        hoarding = asyncio.create_task(call(instance, b"2"))
        assert (await call(instance, b"3")).output == b"3"
        assert kind(await hoarding) == "Nova.OutOfMemory"
        assert kind(await spinning) == "Nova.Timeout"
        leaving = asyncio.create_task(call(instance, b"1"))
        await call(instance, b"3")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert [(await call(instance, b"3")).output for _ in range(5)] == [b"3"] * 5
        assert instance.channel.usable
    finally:
        await backend.stop(instance, reason="test")


async def test_what_the_engine_cannot_interrupt_ends_with_its_instance(backend: WasmBackend, tmp_path: Path) -> None:
    """A module that sleeps does so in the host's code."""
    instance = await loaded(backend, spec(tmp_path, modules.SLEEPS))
    try:
        began = time.monotonic()
        assert kind(await call(instance, timeout_s=0.3)) == "Nova.Timeout"
        async with asyncio.timeout(20):
            while instance.channel.usable:
                await asyncio.sleep(0.05)
        assert time.monotonic() - began < 10
    finally:
        await backend.stop(instance, reason="test")


async def test_a_module_that_does_not_load_says_why(backend: WasmBackend, tmp_path: Path) -> None:
    instance = await backend.create(spec(tmp_path, "(module)"))
    try:
        with pytest.raises(InitFailed, match="exports neither _start nor handle"):
            await instance.channel.init(init())
    finally:
        await backend.stop(instance, reason="test")


async def test_an_instance_has_the_workers_own_memory_on_top(backend: WasmBackend, tmp_path: Path) -> None:
    """A call gets what its function was promised, all of it touched."""
    touch = """(local $at i32)
      (loop $more
        (i32.store8 (local.get $at) (i32.const 1))
        (local.set $at (i32.add (local.get $at) (i32.const 4096)))
        (br_if $more (i32.lt_u (local.get $at) (i32.const 31000000))))"""
    source = modules.reactor(f"{touch} {modules.answer(16, 1)}", pages=480, free=1 << 16)
    source = source.replace("(br_if $more", "(i32.store8 (i32.const 16) (i32.const 57)) (br_if $more")
    instance = await loaded(backend, spec(tmp_path, source))
    try:
        for _ in range(3):
            assert (await call(instance)).output == b"9"
    finally:
        await backend.stop(instance, reason="test")


async def test_a_low_limit_of_processes_bounds_the_calls_at_a_time(backend: WasmBackend, tmp_path: Path) -> None:
    """Threads count as processes: there are as many as fit, and all of them serve."""
    instance = await backend.create(spec(tmp_path, modules.ECHO, Limits(memory_mb=32, pids=10)))
    try:
        done = await instance.channel.init(init(concurrency=40))
        assert 1 <= done.concurrency < 10
        results = await asyncio.gather(*(call(instance, b"%d" % number) for number in range(done.concurrency)))
        assert [result.output for result in results] == [b"%d" % number for number in range(done.concurrency)]
    finally:
        await backend.stop(instance, reason="test")
