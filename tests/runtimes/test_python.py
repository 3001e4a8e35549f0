"""Python functions in a real worker under a real agent."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from nova.execution.backends.base import InitFailed
from tests.agent.harness import Guest, guest

pytestmark = pytest.mark.anyio


def python(code: str, folder: Path, **changes: Any) -> Any:
    return guest("python", {"main.py": code}, folder, **changes)


async def refusal(instance: Guest) -> FunctionError:
    with pytest.raises(InitFailed) as caught:
        await instance.init()
    return caught.value.error


async def test_one_process_serves_every_call(tmp_path: Path) -> None:
    """AG1, AG2, AG4: the pid stays, a module's counter counts, and nothing piles up in a thousand calls."""
    code = """
import gc, os
count = 0
def handler(event, context):
    global count
    count += 1
    return [os.getpid(), count, len(os.listdir("/proc/self/fd"))]
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        first = await instance.value()
        for _ in range(998):
            await instance.value()
        last = await instance.value()
    assert last == [first[0], 1000, first[2]]
    assert first[1] == 1


async def test_a_worker_is_woken_by_calls_and_by_nothing_else(tmp_path: Path) -> None:
    """It sleeps once for each call. That the host has read its answer does not wake it."""
    code = """
def handler(event, context):
    with open("/proc/self/status") as status:
        found = [line for line in status if line.startswith("voluntary_ctxt_switches")]
    return int(found[0].split()[1])
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        slept = []
        for _ in range(20):
            call = asyncio.ensure_future(instance.value())
            await asyncio.sleep(0)
            time.sleep(0.01)  # noqa: ASYNC251 - until the worker has answered and sleeps, nothing is read here
            slept.append(await call)
            await asyncio.sleep(0.01)
    assert slept[-1] - slept[0] < 1.5 * (len(slept) - 1)


async def test_process_mode_starts_every_call_fresh(tmp_path: Path) -> None:
    """AG4, AG5: each call is another process with the module as it was loaded, and has its own answer."""
    code = """
import os, sys
count = 0
def handler(event, context):
    global count
    count += 1
    print("call", event)
    return [os.getpid(), count, event]
"""
    async with python(code, tmp_path, mode="process") as instance:
        await instance.init()
        results = [await instance.call(n) for n in range(20)]
    values = [json.loads(result.output or b"") for result in results]
    assert len({pid for pid, _, _ in values}) == 20
    assert [(count, event) for _, count, event in values] == [(1, n) for n in range(20)]
    assert [result.stdout for result in results] == [f"call {n}\n" for n in range(20)]


async def test_process_mode_leaves_nothing_of_a_call_alive(tmp_path: Path) -> None:
    """A process that a call leaves behind, even in a session of its own, is gone when the next call runs."""
    code = """
import os, subprocess
def handler(event, context):
    if event:
        return os.path.exists(f"/proc/{event}")
    return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
"""
    async with python(code, tmp_path, mode="process") as instance:
        await instance.init()
        pid = await instance.value()
        assert await instance.value(pid) is False


async def test_process_mode_survives_what_a_call_does_to_its_process(tmp_path: Path) -> None:
    """AG21: exit, signal and a crash in the middle are this call's own; the next one is served."""
    code = """
import ctypes, os, signal
def handler(event, context):
    if event == "exit":
        os._exit(3)
    if event == "zero":
        os._exit(0)
    if event == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "segv":
        ctypes.string_at(0)
    return event
"""
    async with python(code, tmp_path, mode="process") as instance:
        await instance.init()
        assert await instance.failure("exit") == FunctionError("Nova.ExitError", "the process exited with code 3")
        assert await instance.failure("zero") == FunctionError("Nova.ExitError", "the process exited with code 0")
        assert await instance.failure("kill") == FunctionError("Nova.Signal", "the process was ended by SIGKILL")
        assert await instance.failure("segv") == FunctionError("Nova.Signal", "the process was ended by SIGSEGV")
        assert await instance.value("fine") == "fine"
        assert instance.channel.usable


async def test_prints_never_reach_the_result(tmp_path: Path) -> None:
    """AG6: text, half lines and lines that look like answers stay prints, each with its own call."""
    code = """
import os, subprocess, sys
def handler(event, context):
    print('{"output": 1}')
    print('{"error": "no"}', file=sys.stderr)
    os.write(1, b"raw ")
    subprocess.run(["echo", "child"])
    sys.stdout.write(f"half {event}")
    return {"event": event}
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        for n in range(3):
            result = await instance.call(n)
            assert json.loads(result.output or b"") == {"event": n}
            assert result.stdout == f'{{"output": 1}}\nraw child\nhalf {n}'
            assert result.stderr == '{"error": "no"}\n'


async def test_environment_and_context_are_those_of_the_current_call(tmp_path: Path) -> None:
    """AG7: on the first call and on the hundredth."""
    code = """
import os
def handler(event, context):
    names = ("NOVA_REQUEST_ID", "NOVA_TRACE_PARENT", "TRACEPARENT")
    return [context.request_id, context.traceparent, *(os.environ.get(name) for name in names)]
"""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with python(code, tmp_path) as instance:
        await instance.init()
        for n in range(100):
            call_id = f"0199aaaa-0000-7000-8000-{n:012x}"
            traced = f"{trace}{n}" if n % 3 == 0 else None
            expected = [call_id, traced, call_id, traced or "", traced or ""]
            if n == 0:
                expected = [call_id, traced, call_id, traced, traced]
            assert await instance.value(request_id=call_id, traceparent=traced) == expected


async def test_child_processes_see_the_call_they_belong_to(tmp_path: Path) -> None:
    """AG7: also those that inherit the environment behind Python's back, and after the function has changed it."""
    code = """
import os, subprocess
def handler(event, context):
    if event.get("set"):
        os.environ["OTHER"] = event["set"]
    show = ["/bin/sh", "-c", "echo $NOVA_REQUEST_ID $OTHER"]
    return [subprocess.check_output(show, text=True).strip(), os.popen("echo $NOVA_REQUEST_ID").read().strip()]
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        for n, (event, other) in enumerate([({}, ""), ({"set": "a"}, " a"), ({}, " a")]):
            call_id = f"0199aaaa-0000-7000-8000-{n:012x}"
            assert await instance.value(event, request_id=call_id) == [call_id + other, call_id]


async def test_the_environment_holds_the_contract_and_the_functions_own(tmp_path: Path) -> None:
    """AG23: nothing of the host or the agent; reserved names cannot be taken; search paths are put before ours."""
    code = "import os\ndef handler():\n    return dict(os.environ)\n"
    env = {"MINE": "1", "HOME": "/tmp/home", "PYTHONPATH": "/opt/x", "NOVA_TENANT": "evil", "_HANDLER": "evil"}
    async with python(code, tmp_path, env=env) as instance:
        await instance.init()
        found = await instance.value()
    assert found["MINE"] == "1"
    assert found["HOME"] == "/tmp/home"
    assert found["PYTHONPATH"] == f"/opt/x:{tmp_path}:{tmp_path}/deps"
    assert found["NOVA_TENANT"] == "acme"
    assert found["_HANDLER"] == "main.handler"
    ours = {name for name in found if name.startswith(("NOVA_", "AWS_", "LAMBDA_", "_"))}
    assert ours == {
        "NOVA_REQUEST_ID", "NOVA_FUNCTION_NAME", "NOVA_FUNCTION_ID", "NOVA_FUNCTION_VERSION", "NOVA_TENANT",
        "NOVA_NAMESPACE", "NOVA_MEMORY_LIMIT_MB", "NOVA_TIMEOUT_S", "NOVA_RUNTIME", "NOVA_MODE", "NOVA_CODE_DIR",
        "NOVA_HANDLER", "NOVA_INPUT_FD", "NOVA_RESULT_FD", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
        "LAMBDA_TASK_ROOT", "_HANDLER",
    }  # fmt: skip
    rest = set(found) - ours
    assert rest == {"MINE", "PATH", "PYTHONPATH", "NODE_PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "TZ"}


async def test_a_gigabyte_of_prints_is_cut_and_blocks_nothing(tmp_path: Path) -> None:
    """AG8: the call succeeds, the log has a marker with the number of bytes that are missing."""
    code = """
import os
def handler(event, context):
    piece = b"x" * 65536
    for _ in range(event):
        os.write(1, piece)
    os.write(2, b"end")
    return "done"
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        result = await instance.call(16384, timeout_s=60)
        assert result.output == b'"done"'
        assert len(result.stdout) < 300_000
        assert result.stdout.endswith(f"\n[… {(1 << 30) - (256 << 10)} bytes cut]\n")
        assert result.stderr == "end"
        assert (await instance.call(1)).stdout == "x" * 65536


async def test_six_megabytes_pass_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    """AG9: both ways; the instance serves the next call."""
    code = 'def handler(event, context):\n    return "x" * event if isinstance(event, int) else len(event)\n'
    limit = 6 << 20
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value(raw=b'"' + b"x" * (limit - 2) + b'"') == limit - 2
        result = await instance.call(limit - 2)
        assert result.output == b'"' + b"x" * (limit - 2) + b'"'
        error = await instance.failure(limit - 1)
        assert error.type == "Nova.OutputTooLarge"
        assert str(limit) in error.message
        assert await instance.value(3) == "xxx"


async def test_errors_say_what_and_where(tmp_path: Path) -> None:
    """AG11, AG21: class, message whatever it holds, and the user's own frames."""
    code = """
class OrderError(Exception):
    pass

def inner(event):
    raise OrderError(event)

def handler(event, context):
    inner(event)
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        for message in ('quote " backslash \\ newline \n end', "nul \0", "emoji 🎉 ünï", "x" * 20000):
            error = await instance.failure(message)
            assert error.type == "OrderError"
            assert error.message == message[:8192]
            assert error.stack == ("main.py:9 in handler", "main.py:6 in inner")
        error = await instance.failure(raw=b'"a\\ud800b"')
        assert error.message == "a\\ud800b"


async def test_every_way_to_fail_has_its_type(tmp_path: Path) -> None:
    """AG21: raise, exit, recursion and results that are no JSON; the worker goes on."""
    code = """
import sys
class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no")
def forever():
    return forever()
def loop():
    value = []
    value.append(value)
    return value
def handler(event, context):
    if event == "exit": sys.exit(7)
    if event == "quit": exit()
    if event == "interrupt": raise KeyboardInterrupt
    if event == "odd": raise Odd
    return {"recursion": forever, "nan": lambda: float("nan"), "set": lambda: {1}, "loop": loop}[event]()
"""
    expected = {
        "exit": ("Nova.ExitError", "the function exited with code 7"),
        "quit": ("Nova.ExitError", "the function exited with code 0"),
        "interrupt": ("KeyboardInterrupt", ""),
        "odd": ("Odd", "(the message of this error cannot be had: RuntimeError)"),
        "recursion": ("RecursionError", "maximum recursion depth exceeded"),
        "nan": ("Nova.InvalidOutput", "the result is not JSON: Out of range float values are not JSON compliant"),
        "set": ("Nova.InvalidOutput", "the result is not JSON: a set cannot be written as JSON"),
        "loop": ("Nova.InvalidOutput", "the result is not JSON: Circular reference detected"),
    }
    async with python(code, tmp_path) as instance:
        await instance.init()
        for event, (kind, message) in expected.items():
            error = await instance.failure(event)
            assert (error.type, error.message) == (kind, message)
        assert instance.channel.usable


async def test_values_come_back_as_they_are(tmp_path: Path) -> None:
    """AG19: a corpus of JSON, payloads that look like code among it, is data on the way in and out."""
    corpus = [
        None, True, 0, -1, 12345678901234567890123, 1.5, 1e300, 5e-324, "", "é🎉\u2028", "__import__('os').system('x')",
        "${jndi:x}", "{{7*7}}", "'; print(1) #", [], {}, {"": 1}, {"a": [{"b": [None]}]}, [1.0, 2], ', "context": {',
        {"output": 1}, '\\"', "\x7f",
    ]  # fmt: skip
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    async with python("def handler(event, context):\n    return event\n", tmp_path) as instance:
        await instance.init()
        for value in [*corpus, deep]:
            assert await instance.value(value) == value
        assert await instance.value(raw=b'  {"a" :  1}  ') == {"a": 1}
        assert (await instance.failure(raw=b'"\\ud800"')).type == "Nova.InvalidOutput"
        assert await instance.value("after") == "after"


async def test_bytes_become_base64(tmp_path: Path) -> None:
    code = 'def handler():\n    return {"a": b"\\x00\\xff", "b": bytearray(b"x")}\n'
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value() == {"a": {"b64": "AP8="}, "b": {"b64": "eA=="}}


@pytest.mark.parametrize(
    ("handler", "files", "answer"),
    [
        ("main.run", {"main.py": "def run():\n    return 'none'\n"}, "none"),
        ("main.run", {"main.py": "def run(event):\n    return event\n"}, "in"),
        ("main.run", {"main.py": "run = lambda event, context, extra=1: extra\n"}, 1),
        ("main.run", {"main.py": "def run(*args):\n    return len(args)\n"}, 2),
        ("main.run", {"main.py": "async def run(event):\n    return event\n"}, "in"),
        ("main.App.go", {"main.py": "class App:\n    def go(self, event):\n        return [event]\n"}, ["in"]),
        ("main.App.go", {"main.py": "class App:\n    @staticmethod\n    def go(event):\n        return [event]\n"}, ["in"]),
        ("main.app", {"main.py": "class A:\n    def __call__(self, e, c):\n        return e\napp = A()\n"}, "in"),
        ("pkg.mod.fn", {"pkg/mod.py": "from . import x\ndef fn():\n    return x.V\n", "pkg/x.py": "V = 5\n"}, 5),
        ("src/main.run", {"src/main.py": "def run():\n    return 1\n"}, 1),
        ("nova.handler", {"nova.py": "def handler():\n    return __name__\n"}, "nova"),
        ("deep.handler", {"deps/deep.py": "def handler():\n    return 'dep'\n"}, "dep"),
    ],
)  # fmt: skip
async def test_handlers_are_found(handler: str, files: dict[str, str], answer: Any, tmp_path: Path) -> None:
    """AG20: functions, classes, packages; parameters may be left out."""
    async with guest("python", files, tmp_path, handler=handler) as instance:
        await instance.init()
        assert await instance.value("in") == answer


@pytest.mark.parametrize(
    ("handler", "code", "message"),
    [
        ("main.missing", "x = 1", "handler 'main.missing' does not exist: 'main' has no 'missing'"),
        ("other.run", "x = 1", "handler 'other.run' does not exist: there is no module 'other' in the code"),
        ("main.x", "x = 1", "handler 'main.x' is not callable"),
        ("main.App.go", "class App: pass", "handler 'main.App.go' does not exist: 'main' has no 'go'"),
    ],
)
async def test_a_handler_that_does_not_exist_is_named(handler: str, code: str, message: str, tmp_path: Path) -> None:
    """AG20."""
    async with python(code, tmp_path, handler=handler) as instance:
        assert await refusal(instance) == FunctionError("Nova.InitError", message)


async def test_an_exception_at_import_keeps_its_class_place_and_prints(tmp_path: Path) -> None:
    """AG20."""
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndef f():\n    return 1 / 0\nf()\n"
    async with python(code, tmp_path) as instance:
        with pytest.raises(InitFailed) as caught:
            await instance.init()
    assert caught.value.error == FunctionError(
        "ZeroDivisionError", "division by zero", ("main.py:6 in <module>", "main.py:5 in f")
    )
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "err\n")


async def test_missing_modules_and_syntax_errors_at_import(tmp_path: Path) -> None:
    async with python("import not_installed_anywhere\n", tmp_path) as instance:
        error = await refusal(instance)
        assert (error.type, error.message) == ("ModuleNotFoundError", "No module named 'not_installed_anywhere'")
        assert error.stack == ("main.py:1 in <module>",)
    async with python("def handler(:\n", tmp_path) as instance:
        error = await refusal(instance)
        assert error.type == "SyntaxError"
        assert error.stack == ("main.py:1 in <module>",)


async def test_exit_at_import(tmp_path: Path) -> None:
    async with python("import sys\nsys.exit(4)\n", tmp_path) as instance:
        assert (await refusal(instance)).message == "the function exited with code 4"
    async with python("import os\nos._exit(4)\n", tmp_path) as instance:
        assert await refusal(instance) == FunctionError("Nova.ExitError", "the process exited with code 4")
    async with python("import os\nos.kill(os.getpid(), 9)\n", tmp_path) as instance:
        assert await refusal(instance) == FunctionError("Nova.Signal", "the process was ended by SIGKILL")


async def test_a_lambda_handler_runs_unchanged(tmp_path: Path) -> None:
    """AG22: context names, ARN, remaining time, log names, __file__, logging with the request id."""
    code = """
import logging, os, pickle
log = logging.getLogger()
log.setLevel(logging.INFO)
class Point:
    pass
def handler(event, context):
    log.info("hello %s", event["name"])
    logging.getLogger("lib").warning("careful")
    pickle.loads(pickle.dumps(Point()))
    return {
        "arn": context.invoked_function_arn.split(":"),
        "id": context.aws_request_id,
        "left": context.get_remaining_time_in_millis(),
        "names": [context.function_name, context.function_version, context.memory_limit_in_mb],
        "log": [context.log_group_name, context.log_stream_name],
        "identity": [context.identity, context.client_context],
        "file": os.path.basename(__file__), "name": __name__,
        "root": os.environ["LAMBDA_TASK_ROOT"], "cwd": os.getcwd(),
    }
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        result = await instance.call({"name": "ana"}, request_id="0199aaaa-0000-7000-8000-0000000000ff")
        value = json.loads(result.output or b"")
    assert value["arn"] == ["arn", "nova", "lambda", "local", "acme", "function", "hello", "3"]
    assert value["id"] == "0199aaaa-0000-7000-8000-0000000000ff"
    assert 15_000 < value["left"] <= 20_000
    assert value["names"] == ["hello", "3", "128"]
    assert value["log"] == ["/nova/acme/prod/hello", "[3]instance-1"]
    assert value["identity"] == [None, None]
    assert (value["file"], value["name"]) == ("main.py", "main")
    assert value["root"] == value["cwd"] == str(tmp_path)
    lines = result.stderr.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["[INFO]", "[WARNING]"]
    assert all("0199aaaa-0000-7000-8000-0000000000ff" in line for line in lines)
    assert lines[0].endswith("\thello ana")


async def test_on_init_runs_once_before_the_first_call(tmp_path: Path) -> None:
    code = """
seen = []
def on_init(context):
    seen.append(context.function_name)
    print("loaded")
def handler():
    return seen
"""
    async with python(code, tmp_path) as instance:
        done = await instance.init()
        assert done.stdout == "loaded\n"
        assert await instance.value() == ["hello"]
        assert await instance.value() == ["hello"]


async def test_async_handlers_share_one_loop(tmp_path: Path) -> None:
    code = """
import asyncio
lock = None
async def handler(event, context):
    global lock
    lock = lock or asyncio.Lock()
    async with lock:
        await asyncio.sleep(0)
    return id(asyncio.get_running_loop())
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value() == await instance.value()


async def test_async_calls_run_at_once_in_one_process(tmp_path: Path) -> None:
    """AG5, AG6: fifty calls that wait for each other, each with its own answer, context and prints."""
    code = """
import asyncio, os
waiting, release = 0, asyncio.Event()
async def handler(event, context):
    global waiting
    print("start", event, end="")
    waiting += 1
    if waiting == 50:
        release.set()
    await release.wait()
    print("", context.request_id)
    await asyncio.to_thread(print, "thread", event)
    return [event, context.request_id, os.getpid()]
"""
    async with python(code, tmp_path, concurrency=50) as instance:
        done = await instance.init()
        assert done.concurrency == 50
        calls = [instance.begin(n, request_id=f"0199-{n:04d}") for n in range(50)]
        results = await asyncio.gather(*calls)
    values = [json.loads(result.output or b"") for result in results]
    assert [value[:2] for value in values] == [[n, f"0199-{n:04d}"] for n in range(50)]
    assert len({value[2] for value in values}) == 1
    assert [result.stdout for result in results] == [f"start {n} 0199-{n:04d}\nthread {n}\n" for n in range(50)]


async def test_sync_calls_at_once_get_a_worker_each(tmp_path: Path) -> None:
    """AG5: ten blocking calls on one instance wait for each other in ten processes."""
    code = f"""
import os, time
def handler(event, context):
    open("{tmp_path}/at-" + str(event), "w").close()
    while len([name for name in os.listdir("{tmp_path}") if name.startswith("at-")]) < 10:
        time.sleep(0.005)
    print("call", event)
    return [event, os.getpid()]
"""
    async with python(code, tmp_path, concurrency=10) as instance:
        assert (await instance.init()).concurrency == 10
        results = await asyncio.gather(*[instance.begin(n) for n in range(10)])
        values = [json.loads(result.output or b"") for result in results]
        assert [value[0] for value in values] == list(range(10))
        assert len({value[1] for value in values}) == 10
        assert [result.stdout for result in results] == [f"call {n}\n" for n in range(10)]
        again = await asyncio.gather(*[instance.begin(n) for n in range(10)])
        assert {json.loads(result.output or b"")[1] for result in again} <= {value[1] for value in values}


async def test_process_mode_with_concurrency(tmp_path: Path) -> None:
    """AG5: in process mode too, every call has its own answer."""
    code = "import os\ndef handler(event, context):\n    return [event, os.getpid()]\n"
    async with python(code, tmp_path, concurrency=5, mode="process") as instance:
        await instance.init()
        results = await asyncio.gather(*[instance.begin(n) for n in range(50)])
    values = [json.loads(result.output or b"") for result in results]
    assert [value[0] for value in values] == list(range(50))
    assert len({value[1] for value in values}) == 50


async def test_the_descriptors_of_a_worker(tmp_path: Path) -> None:
    """Nothing but the protocol's five is open, none of the two line descriptors is handed on to a child."""
    code = """
import os, subprocess
def handler():
    own = [int(name) for name in os.listdir("/proc/self/fd")]
    own = [fd for fd in own if fd < 5 or os.path.exists(f"/proc/self/fd/{fd}")]
    child = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True).stdout.split()
    return [sorted(own), child]
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        own, child = await instance.value()
    assert own == [0, 1, 2, 3, 4]
    assert child == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


@pytest.mark.parametrize("open_files", [100, 2000])
async def test_limits_hold_in_the_worker(open_files: int, tmp_path: Path) -> None:
    code = """
import resource
def handler():
    return [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)]
"""
    async with python(code, tmp_path, open_files=open_files) as instance:
        await instance.init()
        assert await instance.value() == [[open_files, open_files], [0, 0]]


def test_a_limit_that_the_agent_lowers_meanwhile_ends_no_worker() -> None:
    """The host loads a function while its worker still rehearses: both set the limit, and nobody may raise it again."""
    code = """
import resource
from nova.runtimes.python import loading

read = resource.getrlimit

def then_lowered(number):
    found = read(number)
    resource.getrlimit = read
    resource.setrlimit(number, (256, 256))
    return found

resource.getrlimit = then_lowered
loading.rehearse_becoming()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_nothing_of_the_platform_can_be_imported(tmp_path: Path) -> None:
    code = """
import sys
def handler():
    found = [name for name in sys.modules if name.split(".")[0] == "nova"]
    try:
        import nova
        found.append(nova.__file__)
    except ModuleNotFoundError:
        pass
    return [found, sys.modules["__main__"].__dict__.get("__file__"), "site-packages" in str(sys.path)]
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value() == [[], None, False]


async def test_pth_files_of_dependencies_are_honoured(tmp_path: Path) -> None:
    files = {
        "main.py": "import hidden\ndef handler():\n    return hidden.V\n",
        "deps/extra.pth": "more\n",
        "deps/more/hidden.py": "V = 9\n",
    }
    async with guest("python", files, tmp_path) as instance:
        await instance.init()
        assert await instance.value() == 9


async def test_a_crash_names_the_signal_and_ends_the_instance(tmp_path: Path) -> None:
    """AG21: what it printed before is there."""
    code = "import os\ndef handler(event, context):\n    print('before')\n    os.kill(os.getpid(), event)\n"
    async with python(code, tmp_path) as instance:
        await instance.init()
        result = await instance.call(int(signal.SIGSEGV))
    assert result.error is not None
    assert result.error.type == "Nova.Signal"
    assert "SIGSEGV" in result.error.message
    assert result.stdout == "before\n"
    assert not instance.channel.usable


async def test_exit_in_a_persistent_worker(tmp_path: Path) -> None:
    """AG21."""
    async with python("import os\ndef handler(event, context):\n    os._exit(event)\n", tmp_path) as instance:
        await instance.init()
        error = await instance.failure(3)
    assert error == FunctionError("Nova.ExitError", "the process exited with code 3")


async def test_the_import_of_the_code_is_told_apart_from_the_rest_of_a_cold_start(tmp_path: Path) -> None:
    """``on_init`` belongs to it."""
    code = "import time\ntime.sleep(0.04)\ndef on_init():\n    time.sleep(0.04)\ndef handler():\n    return 1\n"
    async with python(code, tmp_path) as instance:
        done = await instance.init()
    assert 80_000 <= done.import_us <= done.init_us


async def test_processes_of_calls_share_no_randomness_and_run_the_codes_own_hooks(tmp_path: Path) -> None:
    """Each call is a fork of the loaded function: a fork in all that the code can notice."""
    code = """
import os, random, threading
seen = []
os.register_at_fork(before=lambda: seen.append("before"), after_in_child=lambda: seen.append("child"))
def broken():
    raise RuntimeError("a hook")
os.register_at_fork(after_in_child=broken)
def handler(event, context):
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return [random.random(), seen, done, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.getpid()]
"""
    threaded = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    for name, source in (("plain", code), ("threaded", threaded + code)):
        async with python(source, tmp_path / name, mode="process") as instance:
            await instance.init()
            results = [await instance.value() for _ in range(5)]
        assert len({number for number, *_ in results}) == 5
        assert [seen[-3:] for _, seen, *_ in results] == [["before", "child", "before"]] * 5
        assert all(done == [1] and status == 7 for _, _, done, status, _ in results)
        assert len({pid for *_, pid in results}) == 5


async def test_a_worker_in_which_no_process_can_live_ends(tmp_path: Path) -> None:
    """A fork that dies before it has a call is not made over and over."""
    code = "import os\nos.register_at_fork(after_in_child=lambda: os._exit(9))\ndef handler():\n    return 1\n"
    async with python(code, tmp_path, mode="process") as instance:
        await instance.init()
        assert (await instance.failure()).type in ("Nova.ExitError", "Nova.InstanceLost")
        assert not instance.channel.usable
