"""Python handlers that answer piece by piece, in every kind of worker."""

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from tests.agent.harness import Guest, guest
from tests.execution.sinks import Reader

pytestmark = pytest.mark.anyio

CODE = """
import asyncio, os, time

def wait(path):
    while not os.path.exists(path):
        time.sleep(0.005)

def handler(event, context):
    do, go = event
    if do == "return":
        return generate("both", go)
    return HANDLERS[do](go, context) if do != "generate" else generate(do, go)

def generate(do, go):
    yield "first"
    wait(go)
    yield b"\\x00\\xff"
    yield {"n": 1}
    if do == "both":
        return "and a result"

def write(go, context):
    context.write("a")
    context.write("b")
    print("printed")
    wait(go)
    context.write([1])

def broken(go, context):
    context.write("before")
    wait(go)
    raise ValueError("in the middle")

def no_json(go, context):
    yield "good"
    yield {1, 2}

def long(go, context):
    yield "ü" * 600_000
    yield b"x" * 600_000

HANDLERS = {"write": write, "broken": broken, "no_json": no_json, "long": long}
"""
ASYNC = """
import asyncio, os
ended = []
async def wait(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.005)

async def handler(event, context):
    do, go = event
    if do == "ended":
        yield ended
        return
    try:
        yield "first"
        print("printed")
        await wait(go)
        if do == "broken":
            raise ValueError("in the middle")
        await context.write(b"\\x00\\xff")
        yield {"n": 1}
        if do == "endless":
            while True:
                yield "x" * 1000
    finally:
        ended.append(do)
"""


async def started(reader: Reader, count: int, go: Path) -> None:
    """The pieces before the handler's wait are there while it waits."""
    await reader.until(lambda: len(reader.pieces) == count)
    assert not go.exists()
    go.touch()


@pytest.mark.parametrize("mode", ["persistent", "process"])
async def test_the_first_piece_comes_before_the_handler_ends(mode: str, tmp_path: Path) -> None:
    """AG14: generators and context.write, the same worker afterwards, and an error after the first piece is an error."""
    go = tmp_path / "go"
    async with guest("python", {"main.py": CODE}, tmp_path, mode=mode) as instance:
        await instance.init()

        async def stream(do: str, before: int) -> tuple[Any, Reader]:
            go.unlink(missing_ok=True)
            reader = Reader()
            call = instance.begin([do, str(go)], sink=reader)
            await started(reader, before, go)
            return await call, reader

        result, reader = await stream("generate", 1)
        assert (result.output, reader.values) == (b"null", ["first", b"\x00\xff", {"n": 1}])
        result, reader = await stream("return", 1)
        assert (result.output, reader.values) == (b'"and a result"', ["first", b"\x00\xff", {"n": 1}])
        result, reader = await stream("write", 2)
        assert (result.output, reader.values) == (b"null", ["a", "b", [1]])
        assert (result.stdout, reader.prints) == ("printed\n", [("stdout", "printed\n")])
        result, reader = await stream("broken", 1)
        assert result.error == FunctionError("ValueError", "in the middle", result.error.stack)
        assert [line.split(" in ")[1] for line in result.error.stack] == ["handler", "broken"]
        result, reader = await stream("no_json", 1)
        assert result.error.type == "Nova.InvalidOutput"
        assert result.error.message == "the piece is not JSON: a set cannot be written as JSON"
        assert reader.values == ["good"]
        result, reader = await stream("long", 10)
        assert "".join(reader.values[:10]) == "ü" * 600_000
        assert b"".join(reader.values[10:]) == b"x" * 600_000
        assert instance.channel.usable


async def test_a_call_that_does_not_stream_gets_all_pieces_at_once(tmp_path: Path) -> None:
    """What the handler returns besides wins; more than an output may have is too large."""
    code = """
def handler(event, context):
    if event == "text":
        context.write("a")
        yield "b"
    elif event == "mixed":
        yield "a"
        yield 1
        yield b"b"
    elif event == "value":
        yield "a"
        return {"b": 1}
    elif event == "large":
        for _ in range(8):
            yield "x" * 1_000_000
"""
    async with guest("python", {"main.py": code}, tmp_path) as instance:
        await instance.init()
        assert await instance.value("text") == "ab"
        assert await instance.value("mixed") == ["a", 1, {"b64": "Yg=="}]
        assert await instance.value("value") == {"b": 1}
        assert await instance.value("nothing") is None
        assert (await instance.failure("large")).type == "Nova.OutputTooLarge"
        assert await instance.value("text") == "ab"


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_asynchronous_generators(concurrency: int, tmp_path: Path) -> None:
    """Alone and several at once in one process: each reader gets its own."""
    go = tmp_path / "go"
    async with guest("python", {"main.py": ASYNC}, tmp_path, concurrency=concurrency) as instance:
        done = await instance.init()
        assert done.concurrency == concurrency
        readers = [Reader() for _ in range(concurrency)]
        calls = [instance.begin(["run", str(go)], sink=reader) for reader in readers]
        for reader in readers:
            await reader.until(partial(both, reader))
        go.touch()
        for call, reader in zip(calls, readers, strict=True):
            assert json.loads((await call).output or b"") is None
            assert reader.values == ["first", b"\x00\xff", {"n": 1}]
            assert reader.prints == [("stdout", "printed\n")]
        assert (await instance.failure(["broken", str(go)])).message == "in the middle"
        assert await instance.value(["run", str(go)]) == ["first", {"b64": "AP8="}, {"n": 1}]


async def test_a_slow_reader_and_one_who_leaves_are_nobody_elses_business(tmp_path: Path) -> None:
    """The handler waits for its own reader only; when that has gone its ``finally`` runs."""
    go = tmp_path / "go"
    go.touch()
    async with guest("python", {"main.py": ASYNC}, tmp_path, concurrency=5) as instance:
        await instance.init()
        slow = Reader(room=3)
        call = instance.begin(["endless", str(go)], sink=slow)
        await slow.until(lambda: slow.room == 0)
        for _ in range(20):
            assert await instance.value(["run", str(go)]) is not None
        slow.read(1000)  # more than its credit: so the handler went on
        await slow.until(lambda: slow.room == 0)
        assert set(slow.values[3:]) == {"x" * 1000}
        call.cancel()
        await ended(instance, "endless")
        assert instance.channel.usable


def both(reader: Reader) -> bool:
    return bool(reader.pieces and reader.prints)


async def ended(instance: Guest, what: str) -> None:
    async with asyncio.timeout(10):
        while what not in (await instance.value(["ended", os.devnull]))[0]:
            await asyncio.sleep(0.01)
