import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from bench.driving import Caller, DriveError, SteadyCrowd, Target, answers, burst, crowd

from bench import driving

Answerer = Callable[[int], tuple[bytes, bool]]
"""The number of the request on this server → the bytes to send and whether to close the connection then."""
GOOD = b'HTTP/1.1 200 OK\r\nX-Nova-Cold-Start: true\r\nContent-Length: 18\r\n\r\n{"hello": "bench"}'


@contextmanager
def serving(answer: Answerer) -> Iterator[Target]:
    """A server that takes whole requests one after another on each connection."""
    numbers = iter(range(1_000_000_000))
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            data = b""
            while piece := connection.recv(65536):
                data += piece
                while data.endswith(b"}") and b"\r\n\r\n" in data:
                    data, (out, close) = b"", answer(next(numbers))
                    connection.sendall(out)
                    if close:
                        return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Target(listener.getsockname()[1], "/", '"hello":"bench"')
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def caller() -> Iterator[Caller]:
    with Caller() as caller:
        yield caller


def test_caller_counts_without_the_warm_up(caller: Caller) -> None:
    asked: list[int] = []

    def answer(number: int) -> tuple[bytes, bool]:
        asked.append(number)
        return GOOD, False

    with serving(answer) as target:
        series = caller.series(target, 20, skip=5)
    assert len(series.us) == 20
    assert len(asked) == 25
    assert all(us > 0 for us in series.us)
    assert series.header("X-Nova-Cold-Start") == "true"
    assert series.header("x-nova-other") is None


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 18\r\n\r\n" + b'{"hello": "bench"}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"error": "oops!"}'[:-1],
    ],
)
def test_a_wrong_answer_fails_the_series_and_says_what_came(caller: Caller, bad: bytes) -> None:
    def answer(number: int) -> tuple[bytes, bool]:
        return (bad if number == 7 else GOOD), False

    with serving(answer) as target, pytest.raises(DriveError, match=r"1 wrong answers.*(503|oops)"):
        caller.series(target, 10)


def test_a_connection_that_was_closed_while_idle_is_made_again(caller: Caller) -> None:
    closed = threading.Event()

    def answer(number: int) -> tuple[bytes, bool]:
        if number == 0:
            closed.set()
        return GOOD, number == 0

    with serving(answer) as target:
        caller.series(target, 1)
        assert closed.wait(5)
        assert len(caller.series(target, 3).us) == 3


def test_an_answer_in_pieces_is_read_to_its_end(caller: Caller) -> None:
    chunked = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{"hello": "bench"}\r\n0\r\n\r\n'
    with serving(lambda number: (chunked, False)) as target:
        assert len(caller.series(target, 5).us) == 5


def test_the_caller_gives_up_in_time(caller: Caller) -> None:
    with serving(lambda number: (GOOD, False)) as target:
        assert len(caller.series(target, 10_000_000, max_s=0.1).us) < 10_000_000


def test_nobody_there(caller: Caller) -> None:
    with serving(lambda number: (GOOD, False)) as target:
        assert answers(target)
    assert not answers(target)
    with pytest.raises(DriveError, match="refused"):
        caller.series(target, 1)


def test_our_own_crowd_counts_what_the_server_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "crowd_driver", lambda: "crowd.py")
    answered = 0

    def answer(number: int) -> tuple[bytes, bool]:
        nonlocal answered
        answered = max(answered, number + 1)
        return GOOD, False

    with serving(answer) as target:
        totals = crowd(target, 4, 0.2)
    assert answered - 4 <= totals.calls <= answered
    assert totals.per_s == totals.calls / totals.seconds


def test_our_own_crowd_reports_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "crowd_driver", lambda: "crowd.py")
    shed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda number: (shed, False)) as target, pytest.raises(DriveError, match="503"):
        crowd(target, 2, 0.1)


def test_a_burst_asks_exactly_so_often_and_collects() -> None:
    asked: list[int] = []

    def answer(number: int) -> tuple[bytes, bool]:
        asked.append(number)
        return GOOD, False

    with serving(answer) as target:
        found = burst(target, 4, 50, max_s=10, collect="hello")
    assert len(asked) == found.calls == 50
    assert found.collected == ["bench"] * 50


def test_a_burst_asks_again_for_what_failed_and_counts_it() -> None:
    shed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

    def answer(number: int) -> tuple[bytes, bool]:
        if number == 3:
            return b"", True
        return (shed if number == 7 else GOOD), False

    with serving(answer) as target:
        found = burst(target, 4, 50, max_s=10, faults=True)
    assert (found.calls, found.wrong) == (50, 2)
    with serving(answer) as target, pytest.raises(DriveError, match="2 wrong answers"):
        burst(target, 4, 50, max_s=10)


def test_a_burst_gives_up_in_time() -> None:
    with serving(lambda number: (GOOD, False)) as target, pytest.raises(DriveError, match="of 10000000 calls"):
        burst(target, 2, 10_000_000, max_s=0.1)


def test_another_status_can_be_the_good_one(caller: Caller) -> None:
    accepted = GOOD.replace(b"200 OK", b"202 Accepted")
    with serving(lambda number: (accepted, False)) as target:
        with pytest.raises(DriveError, match="202"):
            caller.series(target, 1)
        target = replace(target, status=202)
        assert len(caller.series(target, 5).us) == 5
        assert burst(target, 2, 5, max_s=5).calls == 5


def test_steady_callers_count_closed_connections_and_go_on() -> None:
    enough = threading.Event()

    def answer(number: int) -> tuple[bytes, bool]:
        if number >= 20:
            enough.set()
        return (b"", True) if number in (3, 7) else (GOOD, False)

    with serving(answer) as target, SteadyCrowd(target, 2, 30) as callers:
        assert enough.wait(10)
        found = callers.end()
    assert found.wrong == 2
    assert found.calls > 10
    assert "closed" in found.first_wrong


def test_steady_callers_that_ended_are_noticed() -> None:
    with serving(lambda number: (GOOD, False)) as target, SteadyCrowd(target, 1, 0.01) as callers:
        with pytest.raises(DriveError, match="before its time"):
            callers.wait(10)
        with pytest.raises(DriveError, match="before its time"):
            callers.end()
