"""Node.js functions in a real worker under a real agent."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from nova.execution.backends.base import InitFailed
from tests.agent.harness import Guest, guest

pytestmark = pytest.mark.anyio


def node(code: str, folder: Path, **changes: Any) -> Any:
    return guest("node", {"index.js": code}, folder, **changes)


async def refusal(instance: Guest) -> FunctionError:
    with pytest.raises(InitFailed) as caught:
        await instance.init()
    return caught.value.error


async def test_one_process_serves_every_call(tmp_path: Path) -> None:
    """AG1, AG2, AG4."""
    code = """
const fs = require("fs");
let count = 0;
exports.handler = () => [process.pid, ++count, fs.readdirSync("/proc/self/fd").length];
"""
    async with node(code, tmp_path) as instance:
        await instance.init()
        first = await instance.value()
        for _ in range(998):
            await instance.value()
        assert await instance.value() == [first[0], 1000, first[2]]


async def test_process_mode_keeps_an_error_that_nobody_caught(tmp_path: Path) -> None:
    """AG21: thrown outside the handler's own flow, it is still the answer of its call."""
    code = """
exports.handler = (event) => event === null ? "fine" : new Promise(() => setTimeout(() => { throw new TypeError("late"); }));
"""
    async with node(code, tmp_path, mode="process") as instance:
        await instance.init()
        failed = await instance.failure("x")
        assert (failed.type, failed.message) == ("TypeError", "late")
        assert await instance.value() == "fine"


async def test_process_mode_starts_every_call_fresh(tmp_path: Path) -> None:
    """AG4, AG21: another process each time; a call that ends its process costs nobody else."""
    code = """
let count = 0;
exports.handler = (event) => {
  if (event === "exit") process.exit(3);
  console.log("call", event);
  return [process.pid, ++count, process.env.NOVA_REQUEST_ID];
};
"""
    async with node(code, tmp_path, mode="process") as instance:
        await instance.init()
        results = [await instance.call(n, request_id=f"0199-{n}") for n in range(3)]
        values = [json.loads(result.output or b"") for result in results]
        assert len({pid for pid, _, _ in values}) == 3
        assert [value[1:] for value in values] == [[1, f"0199-{n}"] for n in range(3)]
        assert [result.stdout for result in results] == [f"call {n}\n" for n in range(3)]
        assert await instance.failure("exit") == FunctionError("Nova.ExitError", "the process exited with code 3")
        assert (await instance.value(9))[1] == 1


async def test_prints_never_reach_the_result(tmp_path: Path) -> None:
    """AG6."""
    code = """
exports.handler = (event) => {
  console.log('{"output": 1}');
  console.error('{"error": "no"}');
  require("child_process").execSync("echo child", { stdio: "inherit" });
  process.stdout.write(`half ${event}`);
  return { event };
};
"""
    async with node(code, tmp_path) as instance:
        await instance.init()
        for n in range(3):
            result = await instance.call(n)
            assert json.loads(result.output or b"") == {"event": n}
            assert result.stdout == f'{{"output": 1}}\nchild\nhalf {n}'
            assert result.stderr == '{"error": "no"}\n'


async def test_environment_and_context_are_those_of_the_current_call(tmp_path: Path) -> None:
    """AG7."""
    code = """
exports.handler = (event, context) =>
  [context.requestId, context.traceparent ?? null, process.env.NOVA_REQUEST_ID, process.env.TRACEPARENT];
"""
    async with node(code, tmp_path) as instance:
        await instance.init()
        for n in range(100):
            call_id, trace = f"0199-{n}", f"00-{n}" if n % 2 else None
            found = await instance.value(request_id=call_id, traceparent=trace)
            assert found == [call_id, trace, call_id, trace or ""]


async def test_the_environment_holds_the_contract_and_the_functions_own(tmp_path: Path) -> None:
    """AG23."""
    env = {"MINE": "1", "NOVA_TENANT": "evil", "NODE_PATH": "/opt/x"}
    async with node("exports.handler = () => process.env;", tmp_path, env=env) as instance:
        await instance.init()
        found = await instance.value()
    assert (found["MINE"], found["NOVA_TENANT"], found["NOVA_RUNTIME"]) == ("1", "acme", "node")
    assert found["NODE_PATH"].split(":") == [
        "/opt/x",
        f"{tmp_path}/node_modules",
        f"{tmp_path}/deps/node_modules",
        str(tmp_path),
    ]
    assert not {"NODE_OPTIONS", "USER", "SHELL", "PWD"} & set(found)


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_hundred_megabytes_of_prints_are_cut(concurrency: int, tmp_path: Path) -> None:
    """AG8: also where prints are tagged with their call."""
    code = """
exports.handler = () => {
  const piece = "x".repeat(1 << 16);
  for (let n = 0; n < 1600; n++) process.stdout.write(piece);
  return "done";
};
"""
    async with node(code, tmp_path, concurrency=concurrency) as instance:
        await instance.init()
        result = await instance.call(timeout_s=60)
    assert result.output == b'"done"'
    assert result.stdout.endswith(f"\n[… {(1600 << 16) - (256 << 10)} bytes cut]\n")


async def test_six_megabytes_pass_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    """AG9."""
    code = 'exports.handler = (event) => typeof event === "number" ? "x".repeat(event) : event.length;'
    limit = 6 << 20
    async with node(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value(raw=b'"' + b"x" * (limit - 2) + b'"') == limit - 2
        result = await instance.call(limit - 2)
        assert result.output == b'"' + b"x" * (limit - 2) + b'"'
        assert (await instance.failure(limit - 1)).type == "Nova.OutputTooLarge"
        assert await instance.value(3) == "xxx"


async def test_errors_say_what_and_where(tmp_path: Path) -> None:
    """AG11, AG21."""
    code = """
class OrderError extends Error {}
function inner(event) {
  throw new OrderError(event);
}
exports.handler = async (event) => {
  inner(event);
};
"""
    async with node(code, tmp_path) as instance:
        await instance.init()
        for message in ('quote " \\ newline \n end', "nul \0", "emoji 🎉"):
            error = await instance.failure(message)
            assert (error.type, error.message) == ("OrderError", message)
            assert error.stack == ("index.js:7 in exports.handler", "index.js:4 in inner")
        assert (await instance.failure(raw=b'"a\\ud800b"')).message == "a\\ud800b"


async def test_every_way_to_fail_has_its_type(tmp_path: Path) -> None:
    """AG21: whatever is thrown; results that are no JSON; the worker goes on."""
    code = """
const loop = {};
loop.loop = loop;
exports.handler = (event) => ({
  string: () => { throw "text"; },
  object: () => { throw { code: 5 }; },
  undefined: () => { throw undefined; },
  reject: () => Promise.reject(new RangeError("far")),
  recursion: function f() { return f(); },
  nan: () => ({ a: [NaN] }),
  infinity: () => Infinity,
  bigint: () => 5n,
  loop: () => loop,
  function: () => () => 1,
  half: () => "\\ud800",
}[event]());
"""
    expected = {
        "string": ("Error", "text"),
        "object": ("Error", '{"code":5}'),
        "undefined": ("Error", "undefined"),
        "reject": ("RangeError", "far"),
        "recursion": ("RangeError", "Maximum call stack size exceeded"),
        "nan": ("Nova.InvalidOutput", "the result is not JSON: NaN cannot be written as JSON"),
        "infinity": ("Nova.InvalidOutput", "the result is not JSON: Infinity cannot be written as JSON"),
        "bigint": ("Nova.InvalidOutput", "the result is not JSON: Do not know how to serialize a BigInt"),
        "function": ("Nova.InvalidOutput", "the result is not JSON: a function cannot be written as JSON"),
        "half": ("Nova.InvalidOutput", "the result is not JSON: it has half a surrogate pair"),
    }
    async with node(code, tmp_path) as instance:
        await instance.init()
        for event, (kind, message) in expected.items():
            error = await instance.failure(event)
            assert (error.type, error.message) == (kind, message)
        assert (await instance.failure("loop")).type == "Nova.InvalidOutput"
        assert instance.channel.usable


async def test_values_come_back_as_they_are(tmp_path: Path) -> None:
    """AG19."""
    corpus: list[Any] = [
        None, True, 0, -1, 1.5, 1e300, "", "é🎉\u2028", "process.exit(1)", "`${1}`", [], {}, {"": 1}, {"a": [{"b": [None]}]},
        ', "context": {', {"output": 1}, '\\"', "\\ud800", {"__proto__x": 1}, {"toJSON": 1}, "null",
    ]  # fmt: skip
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    async with node("exports.handler = (event) => event;", tmp_path) as instance:
        await instance.init()
        for value in [*corpus, deep]:
            assert await instance.value(value) == value


async def test_bytes_become_base64_and_nothing_becomes_null(tmp_path: Path) -> None:
    code = """
exports.handler = (event) => ({
  top: Buffer.from([0, 255]), view: new Uint8Array([120]), nested: { a: Buffer.from("x") }, none: undefined,
}[event]);
"""
    async with node(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value("top") == {"b64": "AP8="}
        assert await instance.value("view") == {"b64": "eA=="}
        assert await instance.value("nested") == {"a": {"b64": "eA=="}}
        assert await instance.value("none") is None


@pytest.mark.parametrize(
    ("changes", "files", "answer"),
    [
        ({}, {"index.js": "exports.handler = (event) => event"}, "in"),
        ({}, {"index.js": "module.exports = async (event) => event"}, "in"),
        ({}, {"index.js": "exports.handler = (event, context, done) => setTimeout(done, 1, null, event)"}, "in"),
        ({}, {"index.js": "exports.handler = (e, c, done) => { done(null, 'first'); done(null, 'second'); }"}, "first"),
        ({}, {"index.js": "export const handler = async (event) => event"}, "in"),
        ({}, {"index.js": "import fs from 'node:fs';\nexport default () => typeof fs.readFileSync"}, "function"),
        ({}, {"index.js": "export function handler(e) { return e }", "package.json": '{"type": "module"}'}, "in"),
        ({"entry": "index.mjs"}, {"index.mjs": "const x = await 5; export const handler = () => x"}, 5),
        ({"entry": "index.cjs"}, {"index.cjs": "exports.handler = () => 6"}, 6),
        ({"handler": "index.run"}, {"index.js": "exports.run = () => 7"}, 7),
        ({"handler": "src/app.run", "entry": "src/app.js"}, {"src/app.js": "exports.run=_=>require('./x')", "src/x.js": ""}, {}),
        ({}, {"index.js": "exports.handler = () => require('dep')", "node_modules/dep/index.js": "module.exports = 9"}, 9),
        ({}, {"index.js": "exports.handler = () => require('dep')", "deps/node_modules/dep/index.js": "module.exports = 10"}, 10),
    ],
)  # fmt: skip
async def test_handlers_are_found(changes: dict[str, Any], files: dict[str, str], answer: Any, tmp_path: Path) -> None:
    """AG20: every way to export, CommonJS and ES modules, promise and callback."""
    async with guest("node", files, tmp_path, **changes) as instance:
        await instance.init()
        assert await instance.value("in") == answer


async def test_a_handler_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """AG20."""
    async with node("exports.other = 1", tmp_path) as instance:
        text = "handler 'index.handler' does not exist: the module exports no function 'handler'"
        assert await refusal(instance) == FunctionError("Nova.InitError", text)
    async with node("", tmp_path, entry="gone.js", handler="gone.handler") as instance:
        text = "handler 'gone.handler' does not exist: there is no file gone.js in the code"
        assert await refusal(instance) == FunctionError("Nova.InitError", text)


async def test_an_exception_at_load_keeps_its_class_place_and_prints(tmp_path: Path) -> None:
    """AG20."""
    async with node("console.log('out');\nfunction f() { throw new TypeError('no') }\nf();", tmp_path) as instance:
        with pytest.raises(InitFailed) as caught:
            await instance.init()
    error = caught.value.error
    assert (error.type, error.message) == ("TypeError", "no")
    assert error.stack[-1] == "index.js:2 in f"
    assert caught.value.stdout == "out\n"


async def test_exit_at_load(tmp_path: Path) -> None:
    async with node("process.exit(4)", tmp_path) as instance:
        assert await refusal(instance) == FunctionError("Nova.ExitError", "the process exited with code 4")


async def test_a_lambda_handler_runs_unchanged(tmp_path: Path) -> None:
    """AG22."""
    code = """
exports.handler = (event, context, callback) => {
  context.callbackWaitsForEmptyEventLoop = false;
  callback(null, {
    arn: context.invokedFunctionArn.split(":"), id: context.awsRequestId, left: context.getRemainingTimeInMillis(),
    names: [context.functionName, context.functionVersion, context.memoryLimitInMB],
    log: [context.logGroupName, context.logStreamName], file: __filename, cwd: process.cwd(),
  });
};
"""
    async with node(code, tmp_path) as instance:
        await instance.init()
        value = await instance.value(request_id="0199-ff")
    assert value["arn"] == ["arn", "nova", "lambda", "local", "acme", "function", "hello", "3"]
    assert value["id"] == "0199-ff"
    assert 15_000 < value["left"] <= 20_000
    assert value["names"] == ["hello", "3", "128"]
    assert value["log"] == ["/nova/acme/prod/hello", "[3]instance-1"]
    assert (value["file"], value["cwd"]) == (f"{tmp_path}/index.js", str(tmp_path))


async def test_on_init_runs_before_the_first_call(tmp_path: Path) -> None:
    code = """
let name;
exports.onInit = async (context) => { name = context.functionName; console.log("loaded"); };
exports.handler = () => name;
"""
    async with node(code, tmp_path) as instance:
        assert (await instance.init()).stdout == "loaded\n"
        assert await instance.value() == "hello"


async def test_calls_run_at_once_in_one_process(tmp_path: Path) -> None:
    """AG5, AG6: fifty calls that wait for each other, each with its own answer, context and prints."""
    code = """
let waiting = 0, release;
const all = new Promise((resolve) => { release = resolve; });
exports.handler = async (event, context) => {
  console.log("start", event);
  if (++waiting === 50) release();
  await all;
  await new Promise((resolve) => setTimeout(resolve, 5));
  console.error("end", context.requestId);
  return [event, context.requestId, process.pid];
};
"""
    async with node(code, tmp_path, concurrency=50) as instance:
        assert (await instance.init()).concurrency == 50
        results = await asyncio.gather(*[instance.begin(n, request_id=f"0199-{n}") for n in range(50)])
    values = [json.loads(result.output or b"") for result in results]
    assert [value[:2] for value in values] == [[n, f"0199-{n}"] for n in range(50)]
    assert len({value[2] for value in values}) == 1
    assert [result.stdout for result in results] == [f"start {n}\n" for n in range(50)]
    assert [result.stderr for result in results] == [f"end 0199-{n}\n" for n in range(50)]


async def test_an_error_that_nobody_caught_is_the_calls_own_and_ends_the_worker(tmp_path: Path) -> None:
    """AG21: the process is in an unknown state, so it serves no more."""
    code = "exports.handler = () => new Promise(() => setTimeout(() => { throw new RangeError('late') }, 1));"
    async with node(code, tmp_path) as instance:
        await instance.init()
        error = await instance.failure()
        assert (error.type, error.message) == ("RangeError", "late")
        ended = asyncio.Event()
        instance.channel.on_lost(ended.set)
        await asyncio.wait_for(ended.wait(), 20)


async def test_an_empty_error_callback_and_a_thrown_undefined_are_told_apart(tmp_path: Path) -> None:
    code = "exports.handler = (event, context, callback) => { callback(event); };"
    async with node(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value(None) is None
        assert (await instance.failure("text")).message == "text"


async def test_the_import_of_the_code_is_told_apart_from_the_rest_of_a_cold_start(tmp_path: Path) -> None:
    code = "const end = Date.now() + 50; while (Date.now() < end);\nexports.handler = () => 1;"
    async with guest("node", {"index.js": code}, tmp_path) as instance:
        done = await instance.init()
    assert 49_000 <= done.import_us <= done.init_us
