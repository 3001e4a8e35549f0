"""Pieces on their way from a worker to a reader: their order, slow readers, silence, and how much may lie in between."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from tests.agent.harness import guest
from tests.execution.sinks import NullReader, Reader

pytestmark = pytest.mark.anyio

SHELL = """#!/bin/sh
while IFS= read -r call <&3; do
  echo '{"chunk": {"enc": "text", "data": "grüße "}}' >&4
  echo '{"chunk":{"data":"Nova","enc":"text"}}' >&4
  case $call in *more*)
    echo '{"chunk": {"enc": "b64", "data": "AAH/"}}' >&4
    echo '{"chunk": {"enc": "json", "data": {"a": [1]}}}' >&4;;
  *bad*)
    echo '{"chunk": {"enc": "b64", "data": "=="}}' >&4;;
  esac
  case $call in *value*) echo '{"output": {"said": 1}}' >&4;;
  *) echo '{"output": null}' >&4;; esac
done
"""


def shell(folder: Path) -> Any:
    return guest("custom", {"bootstrap": SHELL}, folder)


async def test_pieces_come_in_order_and_then_the_answer(tmp_path: Path) -> None:
    """AG14: any program that writes chunk lines streams."""
    async with shell(tmp_path) as instance:
        await instance.init()
        reader = Reader()
        result = await instance.call("more", sink=reader)
        assert (result.output, result.error) == (b"null", None)
        assert reader.values == ["grüße ", "Nova", b"\x00\x01\xff", {"a": [1]}]
        assert (await instance.call("value", sink=Reader())).output == b'{"said": 1}'


async def test_without_a_reader_the_pieces_are_the_output(tmp_path: Path) -> None:
    """Text is joined, anything else makes an array; what the handler returns comes before both."""
    async with shell(tmp_path) as instance:
        await instance.init()
        assert await instance.value("text") == "grüße Nova"
        assert await instance.value("more") == ["grüße ", "Nova", {"b64": "AAH/"}, {"a": [1]}]
        assert await instance.value("value") == {"said": 1}


async def test_a_piece_that_is_not_what_it_says_ends_the_worker(tmp_path: Path) -> None:
    async with shell(tmp_path) as instance:
        await instance.init()
        result = await instance.call("bad", sink=(reader := Reader()))
        assert result.error == FunctionError("Nova.InvalidOutput", result.error.message)
        assert "not valid b64" in result.error.message
        assert reader.values == ["grüße ", "Nova"]
        assert not instance.channel.usable


PYTHON = """
import os, time
def handler(event, context):
    go = event.get("go")
    for n in range(event.get("count", 0)):
        yield "x" * event.get("size", 1)
        if "progress" in event:
            fd = os.open(event["progress"], os.O_WRONLY | os.O_CREAT)
            os.write(fd, b"%08d" % n)
            os.close(fd)
    if "exit" in event:
        os._exit(event["exit"])
    time.sleep(event.get("sleep", 0))
    yield "last"
"""
ASYNC = """
import asyncio
ended = []
async def handler(event, context):
    try:
        for n in range(event.get("count", 0)):
            yield n
        await asyncio.sleep(event.get("sleep", 0))
    finally:
        ended.append(event.get("name"))
"""


def python(code: str, folder: Path, **changes: Any) -> Any:
    return guest("python", {"main.py": code}, folder, **changes)


async def test_a_reader_who_is_full_holds_the_handler_up(tmp_path: Path) -> None:
    """GW4: the handler waits in its write, and nobody keeps what it has not written yet; then it goes on to its end."""
    progress = tmp_path / "progress"
    async with python(PYTHON, tmp_path) as instance:
        await instance.init()
        reader = Reader(room=2)
        call = instance.begin({"count": 500, "size": 65536, "progress": str(progress)}, sink=reader)
        await reader.until(lambda: reader.room == 0)
        await standing(progress)
        assert int(progress.read_bytes()) < 60  # what lies in sockets and in one read of the host
        assert not call.done()
        reader.read(1 << 30)
        assert (await call).error is None
        assert len(reader.pieces) == 501


async def standing(progress: Path) -> None:
    """Until it has not grown for a while."""
    async with asyncio.timeout(10):
        before = b"-"
        while before != (before := progress.read_bytes() if progress.exists() else b"-") or before == b"-":
            await asyncio.sleep(0.15)


async def test_silence_and_the_whole_time_are_told_apart(tmp_path: Path) -> None:
    """A stream that goes on is not idle, and time in which its reader is full is not the handler's."""
    async with python(ASYNC, tmp_path, concurrency=5) as instance:
        await instance.init()
        silent = instance.begin({"count": 3, "sleep": 100, "name": "silent"}, sink=(reader := Reader()), idle_s=0.5)
        result = await silent
        assert result.error == FunctionError("Nova.Timeout", "the stream was silent for 0.5 s (stream_idle_s)")
        assert reader.values == [0, 1, 2]
        late = await instance.call({"count": 1 << 30}, sink=NullReader(), idle_s=0.5, timeout_s=0.8)
        assert late.error == FunctionError(
            "Nova.Timeout",
            "the stream had not ended when the time of the whole call was up (timeout_s, or the caller's own)",
        )
        slow = Reader(room=1)
        call = instance.begin({"count": 3}, sink=slow, idle_s=0.5)
        await slow.until(lambda: slow.room == 0)
        await asyncio.sleep(0.7)
        assert not call.done()
        slow.read(10)
        assert ((await call).error, slow.values) == (None, [0, 1, 2])
        assert instance.channel.usable
    async with python(PYTHON, tmp_path / "one") as instance:
        await instance.init()
        result = await instance.call({"count": 3, "sleep": 100}, sink=Reader(), idle_s=0.5)
        assert result.error == FunctionError("Nova.Timeout", "the stream was silent for 0.5 s (stream_idle_s)")
        assert instance.killed


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_a_stream_has_a_largest_size(concurrency: int, tmp_path: Path) -> None:
    code = PYTHON if concurrency == 1 else ASYNC.replace("yield n", 'yield "x" * 65536')
    async with python(code, tmp_path, concurrency=concurrency) as instance:
        await instance.init()
        reader = Reader()
        result = await instance.call({"count": 1 << 30, "size": 65536}, sink=reader, stream_limit=1 << 20)
        assert result.error == FunctionError(
            "Nova.OutputTooLarge", "the stream is larger than 1 MiB, the limit that limits.stream_mb sets"
        )
        assert len(reader.pieces) == 16
        assert instance.killed is (concurrency == 1)


async def test_an_answer_waits_for_the_pieces_before_it(tmp_path: Path) -> None:
    """In a worker that goes on with other calls, too; one who leaves meanwhile costs nobody anything."""
    async with python(ASYNC, tmp_path, concurrency=5) as instance:
        await instance.init()
        for leaves in (False, True):
            slow = Reader(room=1)
            call = instance.begin({"count": 3, "name": "ended"}, sink=slow)
            assert await instance.value({"count": 2}) == [0, 1]
            assert not call.done()
            if leaves:
                call.cancel()
            else:
                slow.read(10)
                assert ((await call).error, slow.values) == (None, [0, 1, 2])
        assert await instance.value({"count": 2}) == [0, 1]
        assert instance.channel.usable


async def test_what_a_worker_wrote_before_its_end_still_comes(tmp_path: Path) -> None:
    async with python(PYTHON, tmp_path) as instance:
        await instance.init()
        instance.channel._workers.exit_report_s = 0.1
        slow = Reader(room=1)
        call = instance.begin({"count": 3, "exit": 3}, sink=slow)
        await slow.until(lambda: slow.room == 0)
        await asyncio.sleep(0.3)  # longer than the host waits for a report
        assert not call.done()
        slow.read(10)
        result = await call
        assert result.error == FunctionError("Nova.ExitError", "the process exited with code 3")
        assert slow.values == ["x", "x", "x"]


async def test_a_worker_that_ignores_its_credit_is_ended(tmp_path: Path) -> None:
    """Whatever code inside writes on the worker's own line, the host keeps a bounded part of it."""
    code = """
import asyncio, os
async def handler(event, context):
    line = b'{"request_id": "%b", "chunk": {"enc": "text", "data": "%b"}}\\n' % (context.request_id.encode(), b"x" * 60000)
    for _ in range(1000):
        view = memoryview(line)
        while view:
            view = view[os.write(4, view):]
"""
    async with python(code, tmp_path, concurrency=5) as instance:
        await instance.init()
        result = await instance.call(sink=Reader(room=1))
        assert result.error == FunctionError(
            "Nova.InvalidOutput", "the worker wrote more pieces than it had credit for"
        )
        assert instance.killed


async def test_prints_of_a_stream_come_at_once_up_to_their_limit(tmp_path: Path) -> None:
    code = """
import os, sys, time
def handler(event, context):
    os.write(2, "grü".encode() + b"\\xc3")
    while not os.path.exists(event):
        time.sleep(0.005)
    os.write(2, b"\\x9fe")
    print("x" * 600_000)
"""
    go = tmp_path / "go"
    async with python(code, tmp_path) as instance:
        await instance.init()
        reader = Reader()
        call = instance.begin(str(go), sink=reader)
        await reader.until(lambda: reader.prints == [("stderr", "grü")])
        go.touch()
        result = await call
        assert "".join(text for stream, text in reader.prints if stream == "stderr") == "grüße" == result.stderr
        assert sum(len(text) for stream, text in reader.prints if stream == "stdout") == 256 << 10
