"""DBOS (PyPI): durable workflows as a library on PostgreSQL, in a process of its own with a server of its own.

Its steps run in the process of the workflow, without any isolation: that is what it is, and it is measured as such.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

from bench.driving import DriveError
from bench.subjects.base import SetupFailed
from bench.subjects.control import FUNCTIONS
from bench.subjects.postgres import Postgres

NAME = "DBOS"
AT_ONCE = 32


def measured(folder: Path, *, steps: int, rounds: int, workflows: int, max_s: float) -> tuple[list[float], float]:
    """Milliseconds of each run of a chain of ``steps``, one after another; workflows of one step per second, many at once."""
    folder.mkdir()
    with Postgres(folder / "database") as postgres:
        command = {"steps": steps, "rounds": rounds, "workflows": workflows, "at_once": AT_ONCE}
        try:
            done = subprocess.run(
                [sys.executable, str(FUNCTIONS / "dbos_app.py")],
                input=json.dumps(command) + "\n",
                capture_output=True,
                text=True,
                timeout=max_s,
                env={**os.environ, "BENCH_DSN": _url(postgres.dsn)},
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise DriveError(f"the peer ended with {error.returncode}: {error.stderr.strip()[-300:]}") from error
        except subprocess.TimeoutExpired as error:
            raise DriveError(f"the peer did not end within {error.timeout:.0f} s") from error
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["chain_ms"], found["per_s"]


def _url(dsn: str) -> str:
    """What the peer takes: a URL with the server's folder as its host."""
    given = conninfo_to_dict(dsn)
    return f"postgresql://{given['user']}@/{given['dbname']}?{urlencode({'host': given['host']})}"


def described() -> str:
    """Raises SetupFailed where it is not installed."""
    try:
        found = version("dbos")
    except PackageNotFoundError as error:
        raise SetupFailed("DBOS is not installed; make setup-dev installs it") from error
    return f"{found}, workflows and steps in one process, {AT_ONCE} at once, a PostgreSQL server of its own"
