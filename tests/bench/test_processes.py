import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.processes import Server, ServerFailed, calm, free_port, pss_mb, quiet, read_process, tree, without_postgres

GRANDCHILD = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"


def server(folder: Path, code: str) -> Server:
    return Server("thing", [sys.executable, "-I", "-S", "-c", code], free_port(), folder / "log", folder)


def grandchild(thing: Server) -> int:
    """Waits until the process has printed the pid of its child."""
    thing.wait(lambda: thing.tail().strip().isdigit(), 10)
    return int(thing.tail())


def test_tree_has_grandchildren_and_stop_ends_them(tmp_path: Path) -> None:
    thing = server(tmp_path, GRANDCHILD)
    pid = grandchild(thing)
    found = {p.pid: p for p in tree(os.getpid())}
    assert {thing.pid, pid} <= found.keys()
    assert found[pid].command == "sleep"
    assert pss_mb(pid) > 0
    thing.stop()
    assert read_process(pid) is None
    assert read_process(thing.pid) is None
    thing.stop()


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    thing = server(tmp_path, "raise SystemExit('no such port')")
    with pytest.raises(ServerFailed, match="no such port"):
        thing.wait(lambda: False, 10)


def test_a_server_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="cannot be launched"):
        Server("thing", [str(tmp_path / "missing")], free_port(), tmp_path / "log", tmp_path)


def test_a_machine_at_work_is_not_calm() -> None:
    work = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    crew = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(os.cpu_count() or 1)]
    try:
        assert not calm(limit_s=0.5)
        assert calm(limit_s=0.5, busy=1.0)
    finally:
        for worker in crew:
            worker.kill()
            worker.wait()


def test_quiet_tells_a_sleeping_tree_from_a_busy_one(tmp_path: Path) -> None:
    asleep, busy = server(tmp_path, GRANDCHILD), server(tmp_path, "while True: pass")
    try:
        grandchild(asleep)
        assert quiet(asleep.pid, limit_s=10)
        assert not quiet(busy.pid, window_s=0.1, limit_s=0.3)
    finally:
        asleep.stop()
        busy.stop()


def test_postgres_is_left_out() -> None:
    own = read_process(os.getpid())
    assert own is not None
    assert without_postgres([own]) == [own]
    assert read_process(2**22 + 1) is None
