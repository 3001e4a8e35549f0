"""Functions that misbehave: each gets a clear answer, its next call works, and its neighbour never notices."""

import os
import textwrap
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.e2e.misuse import Neighbour, Platform, platform_at, processes, until
from tests.e2e.server import NovaServer

NAME = "misbehaving"
PRINT_LIMIT = 256 * 1024


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


@pytest.fixture(scope="module")
def neighbour(platform: Platform) -> Iterator[Neighbour]:
    yield Neighbour(platform)
    platform.delete(Neighbour.NAME)


@pytest.fixture(autouse=True)
def around(platform: Platform, neighbour: Neighbour) -> Iterator[None]:
    with neighbour.unharmed():
        yield
    platform.delete(NAME)


def deploy(platform: Platform, code: str, **fields: object) -> None:
    """A function that is fine when its event is "well"."""
    body = textwrap.indent(textwrap.dedent(code).strip(), "    ")
    source = f"import os, sys\ndef handler(event):\n    if event == 'well':\n        return 'fine'\n{body}\n"
    platform.deploy(NAME, source, **fields)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        pytest.param("raise ValueError('bad date')", "ValueError", "bad date", id="raises"),
        pytest.param("raise KeyboardInterrupt", "KeyboardInterrupt", "", id="interrupts"),
        pytest.param("sys.exit(7)", "Nova.ExitError", "code 7", id="exits"),
        pytest.param("os._exit(3)", "Nova.ExitError", "code 3", id="exits at once"),
        pytest.param("import ctypes; ctypes.string_at(0)", "Nova.Signal", "SIGSEGV", id="segfaults"),
        pytest.param("os.abort()", "Nova.Signal", "SIGABRT", id="aborts"),
        pytest.param("os.kill(os.getpid(), 9)", "Nova.Signal", "SIGKILL", id="kills itself"),
        pytest.param("return object()", "Nova.InvalidOutput", "object", id="returns an object"),
        pytest.param("return float('nan')", "Nova.InvalidOutput", "", id="returns NaN"),
        pytest.param("x = []; x.append(x); return x", "Nova.InvalidOutput", "", id="returns a circle"),
        pytest.param("return 'x' * (7 << 20)", "Nova.OutputTooLarge", "", id="returns 7 MB"),
        pytest.param("return handler(event)", "RecursionError", "", id="recurses"),
        pytest.param("b = b'x' * (10 << 30)", "Nova.OutOfMemory", "", id="allocates 10 GB"),
        pytest.param(
            "held = []\nwhile True:\n    held.append(b'x' * (1 << 20))", "Nova.OutOfMemory", "", id="grows without end"
        ),
        pytest.param("os.closerange(0, 64)", "Nova.ExitError", "", id="closes its channel"),
        pytest.param("os.write(4, b'\\xff\\x00 garbage\\n')\nreturn 1", "Nova.", "", id="writes into its channel"),
    ],
)
def test_a_failure_is_the_functions_own(platform: Platform, code: str, error: str, message: str) -> None:
    """AG21: the error object says what it was, and the next call of the same function is answered."""
    deploy(platform, code)
    answer = platform.error(NAME)
    assert answer["type"].startswith(error)
    assert message in answer["message"]
    assert platform.call(NAME, "well") == "fine"
    assert platform.error(NAME) == answer


@pytest.mark.parametrize(
    ("code", "error"),
    [
        pytest.param("throw new TypeError('bad date')", "TypeError", id="throws"),
        pytest.param("throw null", "", id="throws nothing"),
        pytest.param("return Promise.reject(new RangeError('late'))", "RangeError", id="rejects"),
        pytest.param(
            "setTimeout(() => { throw new Error('later') }); return new Promise(() => {})", "Error", id="throws later"
        ),
        pytest.param("process.exit(3)", "Nova.ExitError", id="exits"),
        pytest.param("process.abort()", "Nova.Signal", id="aborts"),
        pytest.param("process.kill(process.pid, 'SIGKILL')", "Nova.Signal", id="kills itself"),
        pytest.param("const x = {}; x.x = x; return x", "Nova.InvalidOutput", id="returns a circle"),
        pytest.param("return 10n", "Nova.InvalidOutput", id="returns a BigInt"),
        pytest.param("return 'x'.repeat(7 << 20)", "Nova.OutputTooLarge", id="returns 7 MB"),
        pytest.param("const f = () => f(); f()", "RangeError", id="recurses"),
        pytest.param(
            "const held = []; for (;;) held.push(Buffer.alloc(1 << 20, 1))", "Nova.OutOfMemory", id="grows without end"
        ),
    ],
)
def test_a_failure_is_the_functions_own_in_node_too(platform: Platform, code: str, error: str) -> None:
    """AG21: the same for Node.js."""
    source = f"exports.handler = async (event) => {{ if (event === 'well') return 'fine'; {code} }}\n"
    platform.deploy(NAME, source, runtime="node", handler=None)
    answer = platform.error(NAME)
    assert answer["type"].startswith(error)
    assert platform.call(NAME, "well") == "fine"


def test_prints_are_no_results(platform: Platform) -> None:
    """AG6: whatever a function prints, it returns its own value, and the print is in its log."""
    deploy(
        platform,
        r"""
        print('{"output": 1}', flush=True)
        print('{"error": "forged"}')
        os.write(1, b'\xff\xfe\x00 not text \x1b[31m\n')
        os.write(2, b'half a line')
        sys.stdout.write('{"output": 2}')
        return 3
        """,
    )
    assert platform.call(NAME) == 3
    log = platform.log(NAME)
    assert log["stdout"].startswith('{"output": 1}\n{"error": "forged"}\n')
    assert " not text \x1b[31m" in log["stdout"]
    assert log["stdout"].endswith('{"output": 2}')
    assert log["stderr"] == "half a line"


def test_a_flood_of_prints_is_cut(platform: Platform, nova_server: NovaServer) -> None:
    """AG8: 100 MB of prints cost the platform no memory to speak of and the caller nothing."""
    deploy(platform, "for _ in range(1600):\n    os.write(1, b'x' * 65535 + b'\\n')\nreturn 'said'")
    before = peak_memory_kb(nova_server.pid)
    assert platform.call(NAME) == "said"
    assert peak_memory_kb(nova_server.pid) - before < 32 << 10
    log = platform.log(NAME)
    assert PRINT_LIMIT / 2 < len(log["stdout"]) < PRINT_LIMIT + 200
    assert "cut" in log["stdout"][-200:]


def test_a_full_tmp_is_the_functions_own_error(platform: Platform) -> None:
    """BE4: /tmp ends at its limit, for this instance alone."""
    deploy(
        platform,
        """
        if event == "again":
            os.remove("/tmp/full")
            return open("/tmp/small", "w").write("works")
        with open("/tmp/full", "wb") as file:
            while True:
                file.write(bytes(1 << 20))
        """,
    )
    error = platform.error(NAME)
    assert (error["type"], "No space left" in error["message"]) == ("OSError", True)
    assert platform.call(NAME, "again") == 5


def test_a_fork_bomb_ends_with_its_instance(platform: Platform) -> None:
    """BE4: processes end at their limit; the bomb is gone when its call is."""
    word = uuid.uuid4().hex
    deploy(
        platform,
        f"""
        import time
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    os.execv("/bin/sh", ["sh", "-c", "sleep 600; : {word}"])
        print("forked", flush=True)
        time.sleep(600)
        """,
        timeout_s=3,
        memory_mb=512,
    )
    answer = platform.post(NAME)
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
    assert platform.log(NAME)["stdout"] == "forked\n"
    until(lambda: not processes(word), "the bomb's processes end")
    assert platform.call(NAME, "well") == "fine"


def test_too_many_processes_are_an_error_that_can_be_caught(platform: Platform) -> None:
    deploy(
        platform,
        """
        import subprocess
        for _ in range(1000):
            subprocess.Popen(["sleep", "600"])
        """,
        limits={"pids": 32},
    )
    error = platform.error(NAME)
    assert (error["type"], "temporarily unavailable" in error["message"]) == ("BlockingIOError", True)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import time; time.sleep(600)", id="sleeps"),
        pytest.param("while True: pass", id="spins"),
        pytest.param(
            "import signal, time\n"
            "for number in set(signal.Signals) - {9, 19}:\n    signal.signal(number, signal.SIG_IGN)\n"
            "time.sleep(600)",
            id="ignores every signal",
        ),
    ],
)
def test_a_call_past_its_time_is_a_timeout(platform: Platform, code: str) -> None:
    """AG10: the caller is answered in time, whatever the function thinks of it."""
    deploy(platform, code, timeout_s=1)
    answer = platform.post(NAME)
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
    assert answer.elapsed.total_seconds() < 60
    assert platform.log(NAME)["error"]["type"] == "Nova.Timeout"
    assert platform.call(NAME, "well") == "fine"


def test_nothing_of_a_call_outlives_its_timeout(platform: Platform) -> None:
    """AG10: a descendant that double-forked, changed its session, ignores SIGTERM and holds stdout open is gone too."""
    word = uuid.uuid4().hex
    deploy(
        platform,
        f"""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv("/bin/sh", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done; : {word}"])
            os._exit(0)
        time.sleep(600)
        """,
        timeout_s=2,
    )
    started = time.monotonic()
    answer = platform.post(NAME)
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
    assert time.monotonic() - started < 60
    until(lambda: not processes(word), "the descendants end")
    assert "up\n" in platform.log(NAME)["stdout"], "it did run"
    assert platform.call(NAME, "well") == "fine"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param("os.kill(os.getppid(), 9)", 200, id="its parent"),
        pytest.param("os.kill(1, 9)", 200, id="process 1"),
        pytest.param("os.kill(-1, 9)", 200, id="everybody"),
        pytest.param("os.killpg(0, 19)", 504, id="its group, by stopping it"),
    ],
)
def test_killing_others_harms_only_oneself(platform: Platform, nova_server: NovaServer, code: str, status: int) -> None:
    """BE4: a function that kills what it can see gets an answer and harms no one else."""
    deploy(
        platform, f"try:\n    {code}\nexcept OSError:\n    pass\nreturn 'alive'", timeout_s=2 if status == 504 else 30
    )
    answer = platform.post(NAME)
    assert answer.status_code == status, answer.text
    assert platform.call(NAME, "well") == "fine"
    os.kill(nova_server.pid, 0)


def peak_memory_kb(pid: int) -> int:
    """The most memory that a process has ever had, in KiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
