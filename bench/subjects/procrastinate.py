"""procrastinate (PyPI): a job queue on PostgreSQL, with a worker process of its own and a server of its own.

Its worker runs one job at once by default; we give it ``CONCURRENCY``, which doubles its rate (beyond ten there is no
difference), and few deferrers, because they take the time of the processors from it: a peer is measured at its best, not
at its default.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.driving import DRIVERS, DriveError
from bench.processes import Server
from bench.subjects.base import SetupFailed
from bench.subjects.control import FUNCTIONS
from bench.subjects.postgres import Postgres

NAME = "procrastinate"
CONCURRENCY = 30
DEFERRERS = 4
READY_LIMIT_S = 30.0
_APP = "procrastinate_app.app"


@dataclass(frozen=True, slots=True)
class Drained:
    accepted_s: float
    seconds: float
    left: int


class Procrastinate:
    """A worker on an empty queue, inside the ``with`` block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._postgres = Postgres(folder / "database")

    def __enter__(self) -> Self:
        self._postgres.__enter__()
        self._env = {**os.environ, "BENCH_DSN": self._postgres.dsn, "PYTHONPATH": str(FUNCTIONS)}
        try:
            self._run("schema", "--apply")
            command = [*_command("worker"), f"--concurrency={CONCURRENCY}"]
            self._worker = Server(NAME, command, 0, self._folder / "worker.log", self._folder, self._env)
            self._worker.wait(partial(self._worker.said, "Starting worker"), READY_LIMIT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if hasattr(self, "_worker"):
            self._worker.stop()
        self._postgres.__exit__(kind, error, tb)

    def drain(self, jobs: int, max_s: float) -> Drained:
        """Defer so many jobs while the worker works; DriveError when they are not done in ``max_s``."""
        command = json.dumps({"jobs": jobs, "deferrers": DEFERRERS, "max_s": max_s}) + "\n"
        script = [sys.executable, str(DRIVERS / "deferrer.py")]
        try:
            done = subprocess.run(
                script, input=command, capture_output=True, text=True, timeout=max_s + 30, env=self._env, check=True
            )
        except subprocess.CalledProcessError as error:
            raise DriveError(f"the deferrer ended with {error.returncode}: {error.stderr.strip()[-300:]}") from error
        except subprocess.TimeoutExpired as error:
            raise DriveError(f"the deferrer did not end within {error.timeout:.0f} s") from error
        found = Drained(**json.loads(done.stdout))
        if found.left:
            raise DriveError(f"{found.left} of {jobs} jobs were not done within {max_s:.0f} s")
        return found

    def _run(self, *arguments: str) -> None:
        try:
            subprocess.run(_command(*arguments), check=True, capture_output=True, text=True, timeout=60, env=self._env)
        except (OSError, subprocess.SubprocessError) as error:
            raise SetupFailed(f"procrastinate {arguments[0]}: {error} {getattr(error, 'stderr', '')}") from error


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "procrastinate", f"--app={_APP}", *arguments]


def described() -> str:
    """Raises SetupFailed where it is not installed."""
    try:
        found = version(NAME)
    except PackageNotFoundError as error:
        raise SetupFailed("procrastinate is not installed; make setup-dev installs it") from error
    return f"{found}, one worker, concurrency {CONCURRENCY}, {DEFERRERS} deferrers, a PostgreSQL server of its own"
