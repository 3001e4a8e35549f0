"""Running a server from the command line: its life from the first progress line to Ctrl-C, with or without the demo."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
import uvloop
from rich.console import Console
from rich.text import Text

from nova.config import Settings, assign
from nova.config_sources import Loaded
from nova.listen import Address, listening_socket, parse
from nova.store import migrate as migrations
from nova.store.embedded import DirectoryLock, EmbeddedPostgres
from nova.telemetry import configure_logging

if TYPE_CHECKING:
    from nova.app.nova import Nova
    from nova.app.process import Process

log = structlog.get_logger(__name__)
_DEMO_STOP_S = 3.0


class Talk:
    """Progress for whoever started the server: lines for people, or records of the log when that is JSON."""

    def __init__(self, loaded: Loaded) -> None:
        self._json = loaded.settings.logging.format == "json"
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def step(self, text: str) -> None:
        if self._json:
            log.info(text)
        else:
            self._console.print(Text.assemble((f"{self.elapsed:5.1f} s  ", "dim"), text), soft_wrap=True)

    def warn(self, text: str) -> None:
        if self._json:
            log.warning(text)
        else:
            self._console.print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)

    def ready(self, url: str) -> None:
        if self._json:
            return  # the platform's own record says it
        self._console.print(Text.assemble(("Nova is ready ", "bold green"), f"after {self.elapsed:.1f} s"))
        for title, value in (("API", url), ("API docs", f"{url}/docs"), ("health", f"{url}/health")):
            self._console.print(f"  {title:<10}{value}")
        self._console.print("  Ctrl-C ends it", style="dim")


def up(loaded: Loaded, *, insecure: bool, demo: bool, demo_input: Path | None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what stands in the way of starting."""
    settings = loaded.settings
    address = parse(settings.daemon.http_addr, open_access=settings.auth.enabled == "false", insecure=insecure)
    start = Path.cwd()
    if loaded.source("functions.code_path_roots") == "default" and start != Path(start.root):
        assign(settings, "functions.code_path_roots", [start])

    if settings.daemon.workers > 1:
        return _with_workers(loaded, address, demo=demo, demo_input=demo_input)

    async def attend(nova: "Nova", talk: Talk) -> int:
        talk.ready(nova.url)
        if not demo:
            await nova.wait()
            return 0
        code = await _demo_or_signal(nova, demo_input)
        if code is not None:
            if code:
                talk.warn("the demo did not succeed; the server goes on")
            talk.step(f"serving on {nova.url}; Ctrl-C ends it")
            await nova.wait()
        return 0

    with _database_ahead(settings, address) as database:
        return _run(loaded, _nova(loaded, address, database), attend, warning=address.warning, quiet=demo)


def _with_workers(loaded: Loaded, address: Address, *, demo: bool, demo_input: Path | None) -> int:
    """As :func:`up`, by several processes; this one supervises them."""
    talk = _begin(loaded, warning=address.warning, quiet=demo, plane="nova")
    from nova.app.supervisor import Supervisor  # takes as long as Nova

    supervisor = Supervisor(loaded, address=address, on_progress=talk.step)
    supervisor.start()
    try:
        if not supervisor.leaving:
            talk.ready(supervisor.url)
        if demo and not supervisor.leaving:
            process = subprocess.Popen(_demo_argv(supervisor.url, demo_input))
            supervisor.watch(lambda: process.poll() is not None)
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_DEMO_STOP_S)
            else:
                if process.returncode:
                    talk.warn("the demo did not succeed; the server goes on")
                talk.step(f"serving on {supervisor.url}; Ctrl-C ends it")
        supervisor.watch()
    finally:
        supervisor.close()
    return 0


def demo(loaded: Loaded, demo_input: Path | None) -> int:
    """The demo on a directory that is thrown away and a port that the kernel chooses; returns the demo's exit code."""

    async def show(nova: "Nova", talk: Talk) -> int:
        talk.step(f"ready at {nova.url}")
        code = await _demo_or_signal(nova, demo_input, ends=True)
        return 130 if code is None else code

    with tempfile.TemporaryDirectory(prefix="nova-demo-") as folder:
        fixed = {"daemon.data_dir": Path(folder), "postgres.dsn": "", "auth.enabled": "auto", "daemon.workers": 1}
        for key, value in fixed.items():
            assign(loaded.settings, key, value)
            loaded.sources[key] = "flag"
        address = Address("127.0.0.1", 0)
        with _database_ahead(loaded.settings, address) as database:
            return _run(loaded, _nova(loaded, address, database), show, warning=None, quiet=True)


def migrate(settings: Settings, *, check: bool) -> int:
    """Apply what is due, or with ``check`` only say it. Without a DSN it starts the server of the data directory."""
    if settings.postgres.dsn:
        return asyncio.run(_migrate(settings.postgres.dsn, check))
    lock = DirectoryLock(settings.data_dir)
    lock.acquire()
    try:
        server = EmbeddedPostgres(settings.data_dir)
        server.start()
        try:
            return asyncio.run(_migrate(server.dsn, check))
        finally:
            server.stop()
    finally:
        lock.release()


async def _migrate(dsn: str, check: bool) -> int:
    due = await migrations.pending(dsn) if check else await migrations.migrate(dsn)
    for migration in due:
        print(f"{'due' if check else 'applied'}: {migration.version:04d} {migration.name}")
    if not due:
        print("the schema is up to date")
    return 1 if check and due else 0


def serve(loaded: Loaded, plane: str, make: Callable[[Talk], "Process"], *, warning: str | None = None) -> int:
    """One plane, until SIGINT or SIGTERM; returns the exit code. ``make`` imports and builds it."""

    async def until_signal(process: "Process", _talk: Talk) -> int:
        await process.wait()
        return 0

    return _run(loaded, make, until_signal, warning=warning, quiet=False, plane=plane)


P = TypeVar("P", bound="Process")


def _run(
    loaded: Loaded,
    make: Callable[[Talk], P],
    work: Callable[[P, Talk], Awaitable[int]],
    *,
    warning: str | None,
    quiet: bool,
    plane: str = "nova",
) -> int:
    """Start, work, close. ``quiet``: the log is for warnings only, because something else is being shown."""
    talk = _begin(loaded, warning=warning, quiet=quiet, plane=plane)

    async def life() -> int:
        process = make(talk)
        try:
            await process.start()
            return await work(process, talk)
        finally:
            await process.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(life())


def _begin(loaded: Loaded, *, warning: str | None, quiet: bool, plane: str) -> Talk:
    """The log, and the first lines."""
    settings = loaded.settings
    shown_by_default = loaded.source("daemon.log_level") == loaded.source("logging.level") == "default"
    level = "warning" if quiet and shown_by_default and settings.logging.format == "text" else settings.log_level
    configure_logging(level, settings.logging.format, plane=plane)
    talk = Talk(loaded)
    if warning:
        talk.warn(warning)
    return talk


def _demo_argv(url: str, demo_input: Path | None) -> list[str]:
    argv = [sys.executable, "-m", "nova.cli.demo", url]
    return argv if demo_input is None else [*argv, "--input", str(demo_input)]


def _nova(loaded: Loaded, address: Address, database: EmbeddedPostgres | None) -> Callable[[Talk], "Nova"]:
    def make(talk: Talk) -> "Nova":
        with _no_collection():
            from nova.app.nova import Nova  # the whole platform: seconds of importing that no other command needs

        return Nova(loaded, address=address, database=database, on_progress=talk.step)

    return make


@contextmanager
def _database_ahead(settings: Settings, address: Address) -> Iterator[EmbeddedPostgres | None]:
    """The embedded server is started while the platform is imported, which takes as long. None where another one serves, and
    where nothing is to be started because the port is taken: the platform says so itself."""
    if settings.postgres.dsn or not _free(address):
        yield None
        return
    # nothing is served yet: told to go, the process ends, but not without the database
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    server = EmbeddedPostgres(settings.data_dir)
    server.begin()
    try:
        yield server
    finally:
        server.stop()


def _free(address: Address) -> bool:
    try:
        listening_socket(address).close()
    except OSError:
        return False
    return True


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules are made to stay: looking for garbage among them is a tenth of the time that importing takes."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _demo_or_signal(nova: "Nova", demo_input: Path | None, *, ends: bool = False) -> int | None:
    """The demo's exit code; None when a signal came first.

    It runs in a process of its own: it is a client like any other, and it can be ended at any moment.
    """
    argv = _demo_argv(nova.url, demo_input)
    if ends:
        argv.append("--ends")
    process = await asyncio.create_subprocess_exec(*argv, env=dict(os.environ))
    finished = asyncio.create_task(process.wait())
    signalled = asyncio.create_task(nova.wait())
    try:
        await asyncio.wait({finished, signalled}, return_when=asyncio.FIRST_COMPLETED)
        return None if signalled.done() else finished.result()
    finally:
        signalled.cancel()
        if not finished.done():
            process.terminate()
            await asyncio.wait({finished}, timeout=_DEMO_STOP_S)
