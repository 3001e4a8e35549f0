"""Several calls at once in one instance, whatever it takes in the language: they meet, and nothing of them mixes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from tests.agent.harness import guest

pytestmark = pytest.mark.anyio

THREADLESS = """
import os, sys, time
def handler(event, context):
    n, folder = event["n"], event["folder"]
    print("out", n)
    print("err", n, file=sys.stderr)
    open(f"{folder}/{n}", "w").close()
    while len(os.listdir(folder)) < event["all"] or n == event["hangs"]:
        time.sleep(0.005)
    if n == event["fails"]:
        raise ValueError(f"call {n}")
    return [n, context.request_id, os.getpid()]
"""
ASYNC = THREADLESS.replace("def handler", "import asyncio\nasync def handler").replace(
    "time.sleep", "await asyncio.sleep"
)
NODE = """
const fs = require("node:fs");
exports.handler = async (event, context) => {
  const { n, folder } = event;
  console.log("out", n);
  console.error("err", n);
  fs.writeFileSync(`${folder}/${n}`, "");
  let gone = false;
  context.signal.addEventListener("abort", () => (gone = true));
  while (!gone && (fs.readdirSync(folder).length < event.all || n === event.hangs)) {
    await new Promise((done) => setTimeout(done, 5));
  }
  if (n === event.fails) throw new RangeError(`call ${n}`);
  return [n, context.awsRequestId, process.pid];
};
"""
N = 4


@pytest.mark.parametrize(
    ("runtime", "entry", "code", "mode", "processes"),
    [
        ("python", "main.py", THREADLESS, "persistent", N),
        ("python", "main.py", THREADLESS, "process", N),
        ("python", "main.py", ASYNC, "persistent", 1),
        ("node", "index.js", NODE, "persistent", 1),
    ],
    ids=["workers", "processes", "async", "node"],
)
async def test_calls_run_at_once_and_apart(
    runtime: str, entry: str, code: str, mode: str, processes: int, tmp_path: Path
) -> None:
    """No call ends before all have begun; then one fails and one runs out of time, which the others do not notice."""
    async with guest(runtime, {entry: code}, tmp_path / "code", mode=mode, concurrency=N) as instance:
        assert (await instance.init()).concurrency == N

        async def together(name: str, **special: int) -> list[Any]:
            folder = tmp_path / name
            folder.mkdir()
            event = {"folder": str(folder), "all": N, "fails": -1, "hangs": -1, **special}
            calls = [
                instance.begin(
                    {**event, "n": n}, timeout_s=1.0 if n == special.get("hangs") else 20, request_id=f"{name}-{n}"
                )
                for n in range(N)
            ]
            return await asyncio.gather(*calls)

        results = await together("fine")
        values = [json.loads(result.output or b"") for result in results]
        assert [value[:2] for value in values] == [[n, f"fine-{n}"] for n in range(N)]
        assert len({pid for *_, pid in values}) == processes
        assert [(result.stdout, result.stderr) for result in results] == [
            (f"out {n}\n", f"err {n}\n") for n in range(N)
        ]

        results = await together("failing", fails=1, hangs=2)
        assert [result.error and result.error.type for result in results] == [
            None,
            "RangeError" if runtime == "node" else "ValueError",
            "Nova.Timeout",
            None,
        ]
        assert results[1].error.message == "call 1"
        assert results[2].error == FunctionError("Nova.Timeout", "the call ran out of time")
        assert [(result.stdout, result.stderr) for result in results] == [
            (f"out {n}\n", f"err {n}\n") for n in range(N)
        ]
        assert len(await together("after")) == N
        assert instance.channel.usable
