"""Node.js handlers that answer piece by piece, in every kind of worker."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.agent.harness import guest
from tests.execution.sinks import Reader

pytestmark = pytest.mark.anyio

CODE = """
const fs = require("node:fs");
const { Readable } = require("node:stream");
const ended = [];
const pause = () => new Promise((done) => setTimeout(done, 5));
async function wait(go) {
  while (!fs.existsSync(go)) await pause();
}
function* generate() {
  yield "first";
  yield Buffer.from([0, 255]);
  return "and a result";
}
async function* later(go, what) {
  try {
    yield "first";
    console.log("printed");
    await wait(go);
    if (what === "broken") throw new RangeError("in the middle");
    yield new Uint8Array([0, 255]);
    yield { n: 1 };
    while (what === "endless") yield "x".repeat(1000);
  } finally {
    ended.push(what);
  }
}
exports.handler = async (event, context) => {
  const [what, go] = event;
  if (what === "ended") return ended;
  if (what === "generate") return generate();
  if (what === "readable") return Readable.from(["first", Buffer.from("b")]);
  if (what === "web") return new Blob(["web"]).stream();
  if (what === "no json") return [NaN][Symbol.iterator]();
  if (what === "long") {
    for (let n = 0; n < 3; n++) context.write("ü😀".repeat(100_001));
    return "end";
  }
  if (what === "write") {
    await context.write("first");
    await wait(go);
    await context.write([1]);
    return undefined;
  }
  return later(go, what);
};
"""


@pytest.mark.parametrize(("mode", "concurrency"), [("persistent", 1), ("persistent", 5), ("process", 1)])
async def test_pieces_come_before_the_handler_ends(mode: str, concurrency: int, tmp_path: Path) -> None:
    """AG14: generators, streams and context.write; an error after the first piece is an error."""
    go = tmp_path / "go"
    async with guest("node", {"index.js": CODE}, tmp_path, mode=mode, concurrency=concurrency) as instance:
        done = await instance.init()
        assert done.concurrency == concurrency

        async def stream(what: str, wait: bool = False) -> tuple[Any, Reader]:
            go.unlink(missing_ok=True)
            reader = Reader()
            call = instance.begin([what, str(go)], sink=reader)
            if wait:
                await reader.until(lambda: reader.pieces)
                assert reader.values == ["first"]
                go.touch()
            return await call, reader

        result, reader = await stream("generator", wait=True)
        assert (result.output, reader.values) == (b"null", ["first", b"\x00\xff", {"n": 1}])
        assert (result.stdout, reader.prints) == ("printed\n", [("stdout", "printed\n")])
        result, reader = await stream("write", wait=True)
        assert (result.output, reader.values) == (b"null", ["first", [1]])
        result, reader = await stream("broken", wait=True)
        assert (result.error.type, result.error.message) == ("RangeError", "in the middle")
        assert result.error.stack[-1].startswith("index.js:")
        result, reader = await stream("generate")
        assert (result.output, reader.values) == (b'"and a result"', ["first", b"\x00\xff"])
        assert (await stream("readable"))[1].values == ["first", b"b"]
        assert (await stream("web"))[1].values == [b"web"]
        result, reader = await stream("no json")
        assert (result.error.type, result.error.message) == (
            "Nova.InvalidOutput",
            "the piece is not JSON: NaN cannot be written as JSON",
        )
        result, reader = await stream("long")
        assert (result.output, "".join(reader.values)) == (b'"end"', "ü😀" * 300_003)
        # without a reader
        assert await instance.value(["generate", ""]) == "and a result"
        assert await instance.value(["readable", ""]) == ["first", {"b64": "Yg=="}]
        assert await instance.value(["generator", os.devnull]) == ["first", {"b64": "AP8="}, {"n": 1}]


async def test_a_slow_reader_and_one_who_leaves_are_nobody_elses_business(tmp_path: Path) -> None:
    """The handler waits for its own reader only; when that has gone the generator is closed."""
    async with guest("node", {"index.js": CODE}, tmp_path, concurrency=5) as instance:
        await instance.init()
        slow = Reader(room=3)
        call = instance.begin(["endless", os.devnull], sink=slow)
        await slow.until(lambda: slow.room == 0)
        for _ in range(20):
            assert await instance.value(["generator", os.devnull]) is not None
        slow.read(1000)  # more than its credit: so the handler went on
        await slow.until(lambda: slow.room == 0)
        assert set(slow.values[3:]) == {"x" * 1000}
        call.cancel()
        async with asyncio.timeout(10):
            while "endless" not in await instance.value(["ended", ""]):
                await asyncio.sleep(0.01)
        assert instance.channel.usable


async def test_handlers_written_for_lambdas_streams_run_as_they_are(tmp_path: Path) -> None:
    """The head is the first piece, as function URLs take it; ending the stream is optional, an error is one."""
    code = """
const { pipeline } = require("node:stream/promises");
const { Readable } = require("node:stream");
exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
  if (event === "type") {
    stream.setContentType("text/html");
    stream.write("<p>");
    stream.write(Buffer.from([255]));
    return;
  }
  const head = { statusCode: 201, headers: { "x-a": "1" }, cookies: ["a=b"] };
  stream = awslambda.HttpResponseStream.from(stream, head);
  if (event === "empty") return stream.end();
  if (event === "broken") throw new RangeError(context.awsRequestId);
  await pipeline(Readable.from(["one ", "two"]), stream);
});
"""
    head = {"statusCode": 201, "headers": {"x-a": "1"}, "cookies": ["a=b"]}
    async with guest("node", {"index.js": code}, tmp_path) as instance:
        await instance.init()
        assert (await instance.call("pipe", sink=(reader := Reader()))).output == b"null"
        assert reader.values == [head, "one ", "two"]
        await instance.call("empty", sink=(reader := Reader()))
        assert reader.values == [head]
        await instance.call("type", sink=(reader := Reader()))
        assert reader.values == [{"statusCode": 200, "headers": {"content-type": "text/html"}}, "<p>", b"\xff"]
        assert (await instance.failure("broken", request_id="some-id")).message == "some-id"
