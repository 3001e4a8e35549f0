"""The code from before the newest migration works on today's schema, beside today's code: that is how releases are replaced."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nova.store.migrate import available
from tests.e2e.misuse import COUNTING, Platform, platform_at, until
from tests.e2e.server import STOP_LIMIT_S, RunningNova, clean_environment, free_port

ROOT = Path(__file__).parents[2]
START_S = 60


def git(*arguments: str) -> bytes:
    """What git answers; nothing when it cannot."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, timeout=120, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the commit before the one that added a migration last."""
    added = git("log", "--diff-filter=A", "-1", "--format=%H", "--", "src/nova/store/migrations").decode().strip()
    archive = git("archive", f"{added}^", "src/nova") if added else b""
    if not archive:
        pytest.skip("this checkout has no history")
    folder = tmp_path_factory.mktemp("earlier")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, timeout=120, check=True)
    return folder / "src"


@pytest.fixture
def earlier_nova(earlier: Path, pg_dsn: str, tmp_path: Path) -> Iterator[str]:
    """``nova up`` of that commit on the database of this test; where it listens."""
    port = free_port()
    command = "import sys; from nova.cli.nova import main; sys.argv[0] = 'nova'; main()"
    flags = ["--http", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "earlier"), "--pg-dsn", pg_dsn]
    log = tmp_path / "earlier.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "up", *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=tmp_path,
            env=clean_environment() | {"PYTHONPATH": str(earlier), "COLUMNS": "200"},
        )
    try:
        with platform_at(f"http://127.0.0.1:{port}") as platform:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return platform.http.get("/health/ready").status_code == 200
                except httpx.ConnectError:
                    return False

            until(ready, "the earlier code serves", START_S)
            assert "the schema is ahead of this code" in log.read_text(), "it is the earlier code"
        yield platform.url
        process.terminate()
        assert process.wait(STOP_LIMIT_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_code_from_before_the_newest_migration_works_beside_todays(
    earlier: Path, earlier_nova: str, pg_dsn: str, tmp_path: Path
) -> None:
    """Each deploys, and each calls and lists what the other deployed."""
    known = {int(path.name[:4]) for path in (earlier / "nova/store/migrations").glob("*.sql")}
    assert known < {migration.version for migration in available()}, "its schema is older"
    with (
        platform_at(earlier_nova) as before,
        RunningNova(tmp_path / "today", "--pg-dsn", pg_dsn) as running,
        platform_at(running.url) as today,
    ):
        before.deploy("from-before", COUNTING)
        today.deploy("from-today", COUNTING)
        for platform in (before, today):
            until(lambda platform=platform: len(names(platform)) == 2, "both are listed")
            for name in ("from-before", "from-today"):
                assert platform.call(name) == 1
                assert platform.call(name) == 2
        changed = before.http.patch("/functions/from-today", json={"code": "def handler():\n    return 'changed'\n"})
        assert changed.status_code == 200, changed.text
        until(lambda: today.call("from-today") == "changed", "a change of the one reaches the other")
        for platform in (before, today):
            path = "/functions/from-today/logs"
            until(lambda platform=platform, path=path: platform.http.get(path).json()["items"], "calls are recorded")
        before.delete("from-before")
        until(lambda: today.post("from-before").status_code == 404, "and so does its end")
        assert running.stop() == 0


def names(platform: Platform) -> list[str]:
    return [item["name"] for item in platform.http.get("/functions").json()["items"]]
