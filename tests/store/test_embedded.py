"""The embedded server: real PostgreSQL in a directory, safe against crashes and second owners."""

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest

from nova.store.embedded import DataDirectoryBusy, DirectoryLock, EmbeddedPostgres


def test_committed_data_survives_kill_9_of_the_server(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    server.start()
    with psycopg.connect(server.dsn) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS n")
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    _gone(server)
    again = EmbeddedPostgres(tmp_path)
    again.start()
    try:
        with psycopg.connect(again.dsn) as conn:
            assert conn.execute("SELECT n FROM kept").fetchone() == (42,)
    finally:
        again.stop()


def test_a_server_left_by_a_killed_daemon_is_adopted(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path)
    first.start()
    second = EmbeddedPostgres(tmp_path)
    second.start()
    try:
        assert second.pid == first.pid
    finally:
        second.stop()
        first.stop()
    assert second.pid is None


def test_a_long_data_directory_still_gets_a_socket(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / ("x" * 100))
    server.start()
    try:
        with psycopg.connect(server.dsn) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()


def test_a_second_owner_of_the_directory_is_refused_by_name(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(DataDirectoryBusy, match=rf"process {os.getpid()}\) is running on .*--data-dir"):
        DirectoryLock(tmp_path).acquire()
    lock.release()
    again = DirectoryLock(tmp_path)
    again.acquire()
    again.release()


def _gone(server: EmbeddedPostgres) -> None:
    assert server._process is not None
    server._process.wait(10)
    deadline = time.monotonic() + 10
    while server.pid is not None and time.monotonic() < deadline:
        time.sleep(0.02)
