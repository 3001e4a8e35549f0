"""Fixtures every test may use: a real PostgreSQL, and a database of its own with the schema for each test that asks."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from nova.store.db import Database
from nova.store.embedded import EmbeddedPostgres

pytest_plugins = ["tests.e2e.server", "tests.events.triggers.brokers"]
_TEMPLATE = "nova_template"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def pg_server() -> Iterator[str]:
    """DSN of a server: ``NOVA_TEST_PG_DSN`` when set (another PostgreSQL version), else an embedded one of our own."""
    if given := os.environ.get("NOVA_TEST_PG_DSN"):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="nova-test-", dir=_in_memory()) as folder:
        server = EmbeddedPostgres(Path(folder))
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            # what is made for a test need not outlive the machine
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("ALTER SYSTEM SET full_page_writes = off")
            admin.execute("SELECT pg_reload_conf()")
        try:
            yield server.dsn
        finally:
            server.stop()


def _in_memory() -> Path | None:
    """Where files are kept in memory, if there is room: a database for each test takes 25 ms there, and 600 on some disks."""
    shared = Path("/dev/shm")
    try:
        room = shutil.disk_usage(shared).free >= 4 << 30
    except OSError:
        return None
    return shared if room and os.access(shared, os.W_OK) else None


def with_dbname(dsn: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, dbname=name)


@pytest.fixture(scope="session")
def pg_template(pg_server: str) -> str:
    """The name of a database that has the schema and nothing else; copied for each test."""
    with psycopg.connect(pg_server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {_TEMPLATE}")
        admin.execute(f"CREATE DATABASE {_TEMPLATE}")
    code = "import asyncio, sys; from nova.store.migrate import migrate; asyncio.run(migrate(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, with_dbname(pg_server, _TEMPLATE)], check=True)
    return _TEMPLATE


@pytest.fixture
def empty_dsn(pg_server: str) -> Iterator[str]:
    """A database without any table."""
    yield from _database(pg_server, "template0")


@pytest.fixture
def pg_dsn(pg_server: str, pg_template: str) -> Iterator[str]:
    """A database of this test's own, with the schema."""
    yield from _database(pg_server, pg_template)


def _database(server: str, template: str) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as admin:
        # where nothing is synced a copy of the files costs a fifth of a copy through the log
        how = "STRATEGY FILE_COPY" if admin.execute("SHOW fsync").fetchone() == ("off",) else ""
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} {how}")
    yield with_dbname(server, name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(pg_dsn: str) -> AsyncIterator[Database]:
    async with Database(pg_dsn, min_conns=1, max_conns=10) as db:
        yield db
