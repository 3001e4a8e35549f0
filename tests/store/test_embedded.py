"""The embedded server: real PostgreSQL in a directory, safe against crashes and second owners."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    _die_with_it(server)
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
    _die_with_it(first)
    second = EmbeddedPostgres(tmp_path)
    second.start()
    try:
        assert second.pid == first.pid
    finally:
        second.stop()
    _gone(first)
    assert second.pid is None


def test_the_last_of_several_processes_stops_the_server(tmp_path: Path) -> None:
    first, second = EmbeddedPostgres(tmp_path), EmbeddedPostgres(tmp_path)
    first.start()
    second.start()
    try:
        first.stop()
        with psycopg.connect(second.dsn) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        second.stop()
        _gone(first)
    assert first.pid is None


def test_who_started_a_killed_server_does_not_keep_others_from_starting_it_again(tmp_path: Path) -> None:
    """It is dead but not gone until its parent has looked; another process already has its turn to start it."""
    parent, other = EmbeddedPostgres(tmp_path), EmbeddedPostgres(tmp_path)
    parent.start()
    other.start()
    try:
        killed = parent.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(other.start)
            log = tmp_path / "postgres.log"
            _until(lambda: "Is another postmaster" in log.read_text())
            parent.start()
            starting.result()
        with psycopg.connect(other.dsn) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        assert other.pid not in (None, killed)
    finally:
        parent.stop()
        other.stop()


def test_planes_share_a_directory_that_nova_up_then_cannot_have(tmp_path: Path) -> None:
    one, other = DirectoryLock(tmp_path, shared=True), DirectoryLock(tmp_path, shared=True)
    one.acquire()
    other.acquire()
    with pytest.raises(DataDirectoryBusy):
        DirectoryLock(tmp_path).acquire()
    one.release()
    other.release()
    alone = DirectoryLock(tmp_path)
    alone.acquire()
    with pytest.raises(DataDirectoryBusy):
        DirectoryLock(tmp_path, shared=True).acquire()
    alone.release()


def test_a_long_data_directory_still_gets_a_socket(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / ("x" * 100))
    server.start()
    try:
        with psycopg.connect(server.dsn) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()


def test_a_server_that_was_begun_is_there_once_started_and_gone_once_stopped(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    server.begin()
    server.stop()
    assert server.pid is None
    again = EmbeddedPostgres(tmp_path)
    again.begin()
    try:
        again.start()
        with psycopg.connect(again.dsn) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        again.stop()
    assert again.pid is None


def test_a_second_owner_of_the_directory_is_refused_by_name(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(DataDirectoryBusy, match=rf"process {os.getpid()}\) is running on .*--data-dir"):
        DirectoryLock(tmp_path).acquire()
    lock.release()
    again = DirectoryLock(tmp_path)
    again.acquire()
    again.release()


def _die_with_it(server: EmbeddedPostgres) -> None:
    """What the kernel does for a daemon that was killed: its share in the server is given up."""
    assert server._users is not None
    server._users.close()
    server._users = None


def _gone(server: EmbeddedPostgres) -> None:
    assert server._process is not None
    server._process.wait(10)
    deadline = time.monotonic() + 10
    while server.pid is not None and time.monotonic() < deadline:
        time.sleep(0.02)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
