"""The agent on its control connection: who it listens to, what it answers, how it ends."""

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nova.agent import frames
from nova.agent.frames import Frame, FrameDecoder, encode
from nova.agent.messages import (
    DoneHead,
    FunctionRef,
    HelloHead,
    InitHead,
    LoadedHead,
    ReloadHead,
    WelcomeHead,
    WorkerExitHead,
)
from tests.agent.harness import TOKEN, descendants, kill_session, spawn_agent, write_files

INIT = InitHead(
    function=FunctionRef("id", "hello", 1, "default", "default"),
    instance_id="instance-1",
    runtime="python",
    mode="persistent",
    handler="main.handler",
    entry="main.py",
    entry_kind="handler",
    env={},
    memory_mb=128,
    timeout_s=30,
    concurrency=1,
    open_files=256,
)


class Host:
    """A hand on the control connection, blocking, with a timeout on everything."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self.fds: list[int] = []
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []
        sock.settimeout(10)

    def send(self, kind: int, number: int, head: Mapping[str, Any]) -> None:
        self.sock.sendall(encode(kind, number, head))

    def hello(self, **changes: Any) -> Frame:
        head = HelloHead(token=TOKEN.hex(), instance_id="instance-1").as_head()
        self.send(frames.HELLO, 1, head | changes)
        return self.receive()

    def receive(self) -> Frame:
        while not self._frames:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 3)
            assert data, "the agent closed the connection"
            self.fds += fds
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def ask(self, kind: int, number: int, head: Mapping[str, Any]) -> Frame:
        self.send(kind, number, head)
        answer = self.receive()
        assert answer.id == number
        return answer

    def closed(self) -> bool:
        """The agent said nothing more and went away."""
        with contextlib.suppress(ConnectionError):
            return self.sock.recv(1) == b"" and not self._frames
        return True


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def start(code: str = "def handler():\n    return 1\n", **options: Any) -> Host:
        write_files(tmp_path, {"main.py": code})
        made.append(Host(*spawn_agent("python", tmp_path, **options)))
        return made[-1]

    yield start
    for one in made:
        kill_session(one.process.pid)
        one.process.wait()
        one.sock.close()
        for fd in one.fds:
            os.close(fd)


def gone(pids: list[int], within_s: float = 20.0) -> bool:
    """Every process has ended (waits on what is left of it, by pidfd)."""
    deadline = time.monotonic() + within_s
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            ended, _, _ = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
            os.close(pidfd)
            if not ended:
                return False
    return True


def test_hello_brings_the_standing_worker(host: Callable[..., Host]) -> None:
    one = host()
    welcome = WelcomeHead.of(one.hello().head)
    assert (welcome.proto, welcome.state, welcome.features) == (1, "blank", ("direct",))
    assert (welcome.runtimes, welcome.fds, len(one.fds)) == (("python",), 3, 3)
    assert welcome.max_message == frames.MAX_MESSAGE


@pytest.mark.parametrize(
    "head",
    [
        {"token": "00" * 32},
        {"token": ""},
        {"token": "zz"},
        {"token": None},
        {"instance_id": "another"},
        {"proto": "1"},
    ],
)
def test_a_peer_without_the_token_is_cut_off_unanswered(head: dict[str, Any], host: Callable[..., Host]) -> None:
    """AG16."""
    one = host()
    one.send(frames.HELLO, 1, HelloHead(token=TOKEN.hex(), instance_id="instance-1").as_head() | head)
    assert one.closed()
    assert one.process.wait(5) == 1


@pytest.mark.parametrize("kind", [frames.INIT, frames.PING, frames.STOP, 20, 30, 40])
def test_anything_before_hello_is_cut_off_unanswered(kind: int, host: Callable[..., Host]) -> None:
    """AG16: Stop, Exec, shell and file messages among it."""
    one = host()
    one.send(kind, 1, {"grace_ms": 0})
    assert one.closed()


def test_a_hello_that_is_not_finished_in_two_seconds_is_cut_off(host: Callable[..., Host]) -> None:
    one = host()
    one.sock.sendall(encode(frames.HELLO, 1, {})[:10])
    assert one.closed()


def test_an_agent_that_nobody_greets_ends(host: Callable[..., Host]) -> None:
    one = host(hello_deadline_s=0.3)
    assert one.closed()
    assert one.process.wait(5) == 1


def test_another_protocol_version_is_named(host: Callable[..., Host]) -> None:
    one = host()
    answer = one.hello(proto=[2, 3])
    assert (answer.type, answer.head["code"]) == (frames.ERROR, "version")
    assert one.closed()


def test_unknown_and_forbidden_types_get_an_error_and_the_connection_goes_on(host: Callable[..., Host]) -> None:
    """AG16: shell, file and process messages are forbidden in a function's instance."""
    one = host()
    one.hello()
    assert one.ask(99, 3, {}).head["code"] == "unknown_type"
    for number, kind in enumerate((20, 30, 31, 40, 41)):
        assert one.ask(kind, 5 + 2 * number, {}).head["code"] == "forbidden"
    assert one.ask(frames.PING, 101, {}).head == {"ok": True, "workers": 1}


@pytest.mark.parametrize("number", [1, 2, 4])
def test_ids_only_grow_and_are_odd(number: int, host: Callable[..., Host]) -> None:
    one = host()
    one.hello()
    one.send(frames.PING, number, {})
    answer = one.receive()
    assert (answer.type, answer.id, answer.head["code"]) == (frames.ERROR, 0, "bad_id")
    assert one.closed()


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\x01{", b"\0\0\0\x02[]", b"\0\0\0\x20" + b"x" * 32],
)
def test_broken_frames_end_the_connection_with_a_reason(data: bytes, host: Callable[..., Host]) -> None:
    """AG17."""
    one = host()
    one.hello()
    one.sock.sendall(data)
    answer = one.receive()
    assert (answer.type, answer.id) == (frames.ERROR, 0)
    assert answer.head["code"] in ("bad_length", "bad_frame")
    assert one.closed()


def test_random_bytes_cost_that_instance_and_nothing_else(host: Callable[..., Host]) -> None:
    """AG17: the agent never crashes on them; it answers, waits or ends in order."""
    random.seed(5)
    for _ in range(6):
        one = host()
        one.hello()
        one.sock.sendall(random.randbytes(random.randint(1, 500)))
        one.sock.shutdown(socket.SHUT_WR)
        assert one.process.wait(10) in (0, 1)


def test_a_head_of_another_shape_is_refused(host: Callable[..., Host]) -> None:
    one = host()
    one.hello()
    one.send(frames.INIT, 3, INIT.as_head() | {"memory_mb": "many"})
    assert one.receive().head["code"] == "bad_head"
    assert one.closed()


def test_the_agent_answers_while_the_code_loads(host: Callable[..., Host], tmp_path: Path) -> None:
    code = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\ndef handler():\n    return 1\n"
    one = host(code)
    one.hello()
    one.send(frames.INIT, 3, INIT.as_head())
    assert one.ask(frames.PING, 5, {}).head["ok"] is True
    (tmp_path / "go").touch()
    loaded = one.receive()
    assert loaded.id == 3
    assert LoadedHead.of(loaded.head).ok


def test_another_function_cannot_be_loaded_over_the_first(host: Callable[..., Host]) -> None:
    one = host()
    one.hello()
    assert LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head).ok
    again = LoadedHead.of(one.ask(frames.INIT, 5, INIT.as_head() | {"handler": "main.other"}).head)
    assert not again.ok
    assert again.error is not None
    assert again.error.message == "this instance has a function loaded already"


def test_a_function_of_another_runtime_is_refused(host: Callable[..., Host]) -> None:
    one = host()
    one.hello()
    loaded = LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head() | {"runtime": "node"}).head)
    assert loaded.error is not None
    assert loaded.error.message == "this instance runs python, not node"


def test_the_end_of_a_worker_is_reported_with_its_cause(host: Callable[..., Host]) -> None:
    one = host()
    one.hello()
    worker = descendants(one.process.pid)[1]
    os.kill(worker, signal.SIGKILL)
    report = one.receive()
    assert report.type == frames.WORKER_EXIT
    assert WorkerExitHead.of(report.head) == WorkerExitHead(0, worker, None, signal.SIGKILL)
    assert one.ask(frames.PING, 3, {}).head == {"ok": True, "workers": 0}


def test_a_worker_that_died_before_init_is_replaced(host: Callable[..., Host]) -> None:
    one = host()
    one.hello()
    os.kill(descendants(one.process.pid)[1], signal.SIGKILL)
    assert one.receive().type == frames.WORKER_EXIT
    loaded = LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head)
    assert (loaded.ok, loaded.worker, loaded.fds) == (True, 1, 3)


def test_a_worker_that_is_killed_on_request_is_gone_when_the_answer_comes(host: Callable[..., Host]) -> None:
    """AG10: and nobody else is told; a worker that has ended before is gone as well."""
    one = host()
    one.hello()
    worker = descendants(one.process.pid)[1]
    assert one.ask(frames.KILL_WORKER, 3, {"worker": 0}).head == {"ok": True, "error": None}
    assert gone([worker], within_s=0)
    assert one.ask(frames.KILL_WORKER, 5, {"worker": 0}).head["ok"] is True
    assert one.ask(frames.PING, 7, {}).head == {"ok": True, "workers": 0}


def test_stages_of_a_reload_out_of_order_are_refused(host: Callable[..., Host], tmp_path: Path) -> None:
    """AG12: each with its reason, and a reload that is begun anew afterwards goes on."""
    one = host(reload_dir=tmp_path / "reloads")
    one.hello()
    assert LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head).ok
    begin = ReloadHead("begin", "sha256:0", 10, "main.handler", "main.py")
    numbers = iter(range(5, 1000, 2))

    def stage(head: ReloadHead, payload: bytes = b"") -> str | None:
        one.sock.sendall(encode(frames.RELOAD, next(numbers), head.as_head(), payload))
        error = DoneHead.of(one.receive().head).error
        return None if error is None else error.type

    assert stage(ReloadHead("data"), b'"eHg="') == "Nova.InvalidState"
    assert stage(ReloadHead("commit")) == "Nova.InvalidState"
    assert stage(ReloadHead("abort")) is None
    assert stage(ReloadHead("rename")) == "Nova.ValidationFailed"
    assert stage(begin) is None
    assert stage(begin) == "Nova.InvalidState"
    assert stage(ReloadHead("data"), b'"eHg="') is None
    for piece in (b'"!"', b"1", b'""', b"{", b'"%b"' % (b"eHh4" * (22 << 10))):
        assert stage(ReloadHead("data"), piece) == "Nova.ValidationFailed"
        assert list((tmp_path / "reloads").iterdir()) == []
        assert stage(ReloadHead("data"), b'"eHg="') == "Nova.InvalidState"
        assert stage(begin) is None
    assert stage(ReloadHead("abort")) is None
    assert list((tmp_path / "reloads").iterdir()) == []


def test_orphans_are_reaped(host: Callable[..., Host]) -> None:
    """AG2: what a function leaves behind without a parent does not become a zombie."""
    code = (
        "import os\nfor _ in range(20):\n    if os.fork() == 0:\n        if os.fork() == 0:\n            os._exit(0)\n"
    )
    code += "        os._exit(0)\n    os.wait()\ndef handler():\n    return 1\n"
    one = host(code)
    one.hello()
    assert LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head).ok
    deadline = time.monotonic() + 5
    while len(descendants(one.process.pid)) > 2 and time.monotonic() < deadline:
        one.ask(frames.PING, int(time.monotonic() * 1e6) | 1, {})
    assert len(descendants(one.process.pid)) == 2


def test_a_lost_connection_ends_the_agent_and_its_workers(host: Callable[..., Host]) -> None:
    """AG27: no guest outlives its host."""
    one = host()
    one.hello()
    assert LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head).ok
    pids = descendants(one.process.pid)
    one.sock.close()
    assert one.process.wait(5) == 0
    assert gone(pids[1:])


def test_stop_gives_the_worker_its_grace(host: Callable[..., Host], tmp_path: Path) -> None:
    code = (
        "import signal, sys\n"
        "def end(*_):\n    open('ended', 'w').close()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\ndef handler():\n    return 1\n"
    )
    one = host(code)
    one.hello()
    assert LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head).ok
    one.send(frames.STOP, 5, {"grace_ms": 5000})
    kinds = [(frame.type, frame.id) for frame in (one.receive(), one.receive())]
    assert kinds == [(frames.WORKER_EXIT, 0), (frames.RESP, 5)]
    assert one.process.wait(5) == 0
    assert (tmp_path / "ended").exists()


def test_stop_kills_a_worker_that_does_not_end(host: Callable[..., Host]) -> None:
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef handler():\n    return 1\n"
    one = host(code)
    one.hello()
    assert LoadedHead.of(one.ask(frames.INIT, 3, INIT.as_head()).head).ok
    worker = descendants(one.process.pid)[1]
    assert one.ask(frames.STOP, 5, {"grace_ms": 100}).head == {"ok": True}
    assert one.process.wait(5) == 0
    assert gone([worker])
