"""The worker: what modules answer, what stops them, and that calls share nothing."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.runtimes.wasm.engine import compile_module, compiled_name, make_engine
from tests.backends.wasm import modules
from tests.backends.wasm.harness import RUNTIME, Worker, worker


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with worker(tmp_path_factory.mktemp("echo"), modules.ECHO, concurrency=3) as made:
        yield made


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_reactor_answers_with_what_its_handler_points_at(echo: Worker) -> None:
    assert echo.ready["ready"] == {"concurrency": 3, "multiplex": True, "import_us": echo.ready["ready"]["import_us"]}
    values: list[object] = [{"ä": [1, 2.5, None]}, "x" * 300_000, []]
    for value in values:
        assert echo.call(json.dumps(value).encode()) == value


def test_many_calls_at_once_are_told_apart(echo: Worker) -> None:
    for number in range(3):
        echo.send(f"call-{number}", b"%d" % number)
    answers = [echo.hear() for _ in range(3)]
    assert {answer["request_id"]: answer["output"] for answer in answers} == {f"call-{n}": n for n in range(3)}


def test_nothing_in_memory_outlives_a_call(tmp_path: Path) -> None:
    with worker(tmp_path, modules.COUNTER) as counter:
        assert [counter.call() for _ in range(3)] == [1, 1, 1]


def test_a_call_finds_nothing_of_the_one_before_in_the_same_place(tmp_path: Path) -> None:
    with worker(tmp_path, modules.LEAVES) as leaves:
        assert [leaves.call(b"1"), leaves.call(b"0"), leaves.call(b"1"), leaves.call(b"0")] == [4, 0, 4, 0]


def test_a_command_answers_on_stdout(tmp_path: Path) -> None:
    """The last document is the result; what comes before it, and stderr, are prints of this call."""
    with worker(tmp_path, modules.CAT) as cat:
        assert cat.call(b'{"a": [1, 2]}') == {"a": [1, 2]}
        assert cat.call(b'"plain"') == "plain"
    with worker(tmp_path, modules.LOUD) as loud:
        loud.send("a")
        answer, before = loud.until_answer()
        assert answer["output"] == 42
        prints = {line["log"]["stream"]: (line["log"]["request_id"], line["log"]["text"]) for line in before}
        assert prints == {"stdout": ("a", "printed\n"), "stderr": ("a", "warned\n")}


def test_text_that_is_no_json_is_a_string(tmp_path: Path) -> None:
    with worker(
        tmp_path, modules.reactor(modules.answer(16, 7), extra='(data (i32.const 16) "a\\nb \\22c\\22")')
    ) as talks:
        assert talks.call() == 'a\nb "c"'
    with worker(tmp_path, modules.reactor("(i64.const 0)")) as silent:
        assert silent.call() is None


def test_a_streamed_command_waits_for_credit(tmp_path: Path) -> None:
    """What it writes are pieces; without credit it stands still in its write."""
    with worker(tmp_path, modules.PIECES) as pieces:
        pieces.send("a", streaming=True, stream_credit=16384)
        texts = []
        while True:
            message = pieces.hear()
            if "output" in message:
                break
            texts.append(message["chunk"]["data"])
            pieces.tell(credit="a", bytes=4096 * len("\\u0000") + 2 + 64)
        assert message["output"] is None
        assert "".join(texts) == "\0" * (40 * 4096)
        pieces.send("b", streaming=True, stream_credit=100)
        pieces.hear()
        pieces.line.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pieces.hear()
        pieces.line.settimeout(20)
        pieces.tell(cancel="b")
        assert pieces.until_answer("b")[0]["error"]["type"] == "Nova.Cancelled"


# -- what is not a function ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("(module", "expected"),
        (b"\0asm\1\0\0\0\1", "unexpected end"),
        ("(module)", "exports neither _start nor handle"),
        ('(module (func (export "handle") (result i32) (i32.const 0)))', "another type"),
        ('(module (func (export "handle") (param i32 i32) (result i64) (i64.const 0)))', "alloc"),
        (modules.ECHO.replace('(export "memory")', ""), "memory"),
        ('(module (import "env" "socket" (func)) (func (export "_start")))', "env::socket"),
        ('(module (table 200000 funcref) (func (export "_start")))', "exceeds"),
    ],
)
def test_what_is_no_function_does_not_load(module: str | bytes, reason: str, tmp_path: Path) -> None:
    with worker(tmp_path, module) as refused:
        error = refused.ready["error"]
        assert error["type"] == "Nova.InitError"
        assert reason in error["message"]


def test_what_a_build_compiled_is_loaded_and_not_compiled_again(tmp_path: Path) -> None:
    """Told by compiling another module than the source says."""
    file = tmp_path / compiled_name("handler.wasm", RUNTIME.toolchain.version)
    file.parent.mkdir()
    file.write_bytes(compile_module(make_engine(), modules.COUNTER.encode()).serialize())
    with worker(tmp_path, modules.ECHO) as counter:
        assert counter.call(b"7") == 1
    file.write_bytes(b"of another engine, or half of it")
    with worker(tmp_path, modules.ECHO) as echo:
        assert echo.call(b"7") == 7


# -- limits ----------------------------------------------------------------------------------------------------------


def test_an_endless_loop_ends_at_its_deadline_and_the_worker_serves_on(tmp_path: Path) -> None:
    with worker(tmp_path, modules.SPIN) as spinning:
        began = time.monotonic()
        assert spinning.error(timeout_s=0.2)[0] == "Nova.Timeout"
        assert time.monotonic() - began < 5
        spinning.send("a", timeout_s=60)
        spinning.tell(cancel="a")
        assert spinning.until_answer()[0]["error"]["type"] == "Nova.Cancelled"
        assert spinning.error(timeout_s=0.1)[0] == "Nova.Timeout"


def test_an_endless_loop_holds_up_nobody_else(tmp_path: Path) -> None:
    source = modules.reactor(
        f"(if (i32.eq (i32.load8_u (local.get $start)) (i32.const 49)) (then (loop $again (br $again)))) {modules.INPUT}"
    )
    with worker(tmp_path, source, concurrency=2) as both:
        both.send("spins", b"1")
        for _ in range(20):
            both.send("a", b"2")
            assert both.hear() == {"request_id": "a", "output": 2}
        both.tell(cancel="spins")
        assert both.until_answer("spins")[0]["error"]["type"] == "Nova.Cancelled"


def test_memory_ends_where_the_function_has_no_more(tmp_path: Path) -> None:
    with worker(tmp_path, modules.HOARD, memory_mb=16) as hoard:
        for _ in range(3):  # each call has all of it
            kind, message = hoard.error()
            assert kind == "Nova.OutOfMemory"
            assert "of 16 MiB" in message
    with worker(tmp_path, modules.TOO_LARGE, memory_mb=16) as large:
        assert large.error() == ("Nova.OutOfMemory", "the module needs more than 16 MiB of memory to begin with")


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (modules.DEEP, "Trap.StackOverflow", "call stack exhausted"),
        (modules.OUTSIDE, "Trap.MemoryOutOfBounds", "out of bounds memory access"),
        (modules.reactor("(unreachable)"), "Trap.Unreachable", "unreachable"),
        (modules.WRONG_ANSWER, "Nova.InvalidOutput", "outside of memory"),
        (modules.FAILS, "Nova.ExitError", "bad luck"),
        (modules.command("(call $proc_exit (i32.const 4))", "proc_exit"), "Nova.ExitError", "code 4"),
    ],
)
def test_traps_and_exits_have_names(module: str, kind: str, message: str, tmp_path: Path) -> None:
    with worker(tmp_path, module) as failing:
        for _ in range(2):
            found = failing.error()
            assert found[0] == kind
            assert message in found[1]


@pytest.mark.parametrize(
    ("last", "kind", "message"),
    [
        ('{"type": "NoSuchUser", "message": "7"}', "NoSuchUser", "7"),
        ('{"type": "Nova.Timeout", "message": "not so"}', "Nova.ExitError", '{"type": "Nova.Timeout"'),
        ('{"type": 1}', "Nova.ExitError", '{"type": 1}'),
        ("[1]", "Nova.ExitError", "[1]"),
    ],
)
def test_a_program_names_its_error_itself(last: str, kind: str, message: str, tmp_path: Path) -> None:
    escaped = last.replace('"', '\\"')
    size = len("before\n" + last)
    body = f"(call $write (i32.const 2) (i32.const 64) (i32.const {size})) (call $proc_exit (i32.const 1))"
    source = modules.command(body, "proc_exit", extra=f'(data (i32.const 64) "before\\n{escaped}")')
    with worker(tmp_path, source) as failing:
        found = failing.error()
        assert found[0] == kind
        assert message in found[1]


def test_a_trap_names_where_it_happened(tmp_path: Path) -> None:
    with worker(
        tmp_path, modules.reactor("(call $inner) (i64.const 0)", extra="(func $inner (unreachable))")
    ) as failing:
        failing.send("a")
        stack = failing.until_answer()[0]["error"]["stack"]
        assert stack[-1].endswith("in inner")
        assert len(stack) == 2


def test_fuel_bounds_the_work_of_a_call(tmp_path: Path) -> None:
    with worker(tmp_path, modules.SPIN, fuel=10_000) as spinning:
        for _ in range(2):
            assert spinning.error() == ("Nova.OutOfFuel", "the call used up its 10000 units of fuel")
    with worker(tmp_path, modules.ECHO, fuel=10_000) as echo:
        assert [echo.call(b"7") for _ in range(3)] == [7, 7, 7]


# -- the world of a module -------------------------------------------------------------------------------------------


def test_a_module_can_open_its_input(tmp_path: Path) -> None:
    """BE12: also without stdin."""
    with worker(tmp_path, modules.opened("input.json", folder=3)) as opens:
        opens.send("a", b'{"the": "input"}')
        answer, before = opens.until_answer()
        assert answer["output"] == "00"
        assert [line["log"]["text"] for line in before] == ['{"the": "input"}\n']


@pytest.mark.parametrize(
    ("path", "folder", "write"),
    [
        ("/etc/passwd", 3, False),
        ("../../etc/passwd", 3, False),
        ("../../etc/passwd", 4, False),
        ("link", 4, False),
        ("new", 3, True),
        ("new", 4, True),
        ("etc/passwd", 6, False),
    ],
)
def test_nothing_else_of_the_host_can_be_opened(path: str, folder: int, write: bool, tmp_path: Path) -> None:
    """BE12: ``/input`` and ``/code`` are read, ``/tmp`` is written, and there is no way out of them."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    with worker(tmp_path, modules.opened(path, folder=folder, write=write)) as opens:
        opens.send("a")
        answer, before = opens.until_answer()
        assert int(answer["output"]) > 0
        assert before == []
    assert not (tmp_path / "new").exists()


def test_code_is_read_and_tmp_is_written(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("beside the module")
    with worker(tmp_path, modules.opened("data.txt", folder=4)) as reads:
        reads.send("a")
        _, before = reads.until_answer()
        assert [line["log"]["text"] for line in before] == ["beside the module\n"]
    with worker(tmp_path, modules.opened("new", folder=5, write=True)) as writes:
        assert writes.call() == "00"
    assert (tmp_path / "tmp" / "module" / "new").exists()


def test_the_environment_is_the_functions(tmp_path: Path) -> None:
    """BE12: nothing of the host's, no token of the guest API, and arguments as a command expects them."""
    env = {"GREETING": "hello", "NOVA_API_TOKEN": "secret", "PYTHONPATH": "/code"}
    with worker(tmp_path, modules.VARIABLES, env=env) as tells:
        for request_id in ("a", "b"):
            tells.send(request_id)
            text = tells.until_answer(request_id)[0]["output"]
            arguments, variables = text[:32].rstrip("\0").split("\0"), text[32:].rstrip("\0").split("\0")
            assert arguments == ["handler", "/input/input.json"]
            assert sorted(variables) == ["GREETING=hello", "NOVA_MEMORY_LIMIT_MB=64", f"NOVA_REQUEST_ID={request_id}"]


def test_there_are_no_sockets(tmp_path: Path) -> None:
    body = """(local.set $n (call $sock_accept (i32.const 3) (i32.const 0) (i32.const 16)))
      (i32.store8 (i32.const 48) (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
      (call $write (i32.const 1) (i32.const 48) (i32.const 1))"""
    with worker(tmp_path, modules.command(body, "sock_accept")) as asks:
        assert asks.call() > 0


def test_a_worker_ends_with_its_host(echo: Worker, tmp_path: Path) -> None:
    with worker(tmp_path, modules.ECHO) as lonely:
        assert lonely.call(b"1") == 1
        lonely.line.close()
        assert lonely.process.wait(10) == 0
