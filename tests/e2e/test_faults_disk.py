"""The disk of the data directory is full, and later it is not."""

import base64
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.misuse import COUNTING, Neighbour, Platform, platform_at, until
from tests.e2e.server import RunningNova

pytestmark = pytest.mark.root
SIZE_MB = 192
REFUSED = {(507, "storage_full"), (503, "dependency_unavailable")}
"""What asks for room is told that there is none, or that the database, which shares the disk, has stopped over it."""


class Disk:
    """A file system of the test's own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not one byte is left."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        assert not os.statvfs(self.place).f_bavail
        try:
            yield
        finally:
            self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(place)], check=True)
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def running(disk: Disk, tmp_path: Path) -> Iterator[RunningNova]:
    running = RunningNova(disk.place / "data")
    running.log = tmp_path / "nova.log"
    with running:
        yield running


@pytest.fixture
def platform(running: RunningNova) -> Iterator[Platform]:
    with platform_at(running.url) as platform:
        yield platform


def large() -> str:
    """A function whose code cannot be packed."""
    return COUNTING + f"ballast = {base64.b64encode(os.urandom(4 << 20)).decode()!r}\n"


def test_a_full_disk_is_said_and_harms_nothing_that_runs(platform: Platform, disk: Disk, running: RunningNova) -> None:
    """What needs room is refused with the reason; warm calls go on; with room again everything works."""
    neighbour = Neighbour(platform)
    platform.deploy("early", COUNTING)
    with neighbour.unharmed():
        with disk.full():
            for name in ("late-1", "late-2"):
                deploy = platform.http.post("/functions", json={"name": name, "runtime": "python", "code": large()})
                assert (deploy.status_code, deploy.json()["code"]) in REFUSED, deploy.text
                assert int(deploy.headers["retry-after"]) >= 1
            cold = platform.post("early")
            assert (cold.status_code, cold.json().get("code")) in {*REFUSED, (200, None)}, cold.text
            assert platform.http.get("/health/live").status_code == 200
        until(lambda: platform.http.get("/health/ready").status_code == 200, "the platform is ready again")
        for name in ("late-1", "late-2"):
            assert platform.http.get(f"/functions/{name}").status_code == 404, "what was refused is not there"
        until(lambda: platform.post("early").status_code == 200, "what was accepted before can be called")
        platform.deploy("after", large())
        assert platform.call("after") == 1
    until(lambda: recorded(platform) == neighbour.calls, "every call has its record")
    assert running.stop() == 0


def test_a_database_that_dies_on_a_full_disk_is_back_when_there_is_room(
    platform: Platform, disk: Disk, running: RunningNova
) -> None:
    """The worst of both: PostgreSQL dies and its disk is full. Warm calls go on, and nobody has to restart anything."""
    neighbour = Neighbour(platform)
    with neighbour.unharmed():
        with disk.full():
            pid = (running.data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]
            os.kill(int(pid), signal.SIGKILL)
            until(lambda: platform.http.get("/health/ready").status_code == 503, "readiness says no")
            deploy = platform.http.post("/functions", json={"name": "late", "runtime": "python", "code": COUNTING})
            assert (deploy.status_code, deploy.json()["code"]) == (503, "dependency_unavailable"), deploy.text
        until(lambda: platform.http.get("/health/ready").status_code == 200, "the platform is ready again")
        platform.deploy("after", COUNTING)
        assert platform.call("after") == 1
    until(lambda: recorded(platform) == neighbour.calls, "every call has its record")
    assert running.stop() == 0


def test_a_start_without_room_says_so_and_leaves_no_obstacle(disk: Disk, tmp_path: Path) -> None:
    server = RunningNova(disk.place / "data")
    server.log = tmp_path / "nova.log"
    with disk.full():
        with pytest.raises(AssertionError, match="nova ended with 1"), server:
            pytest.fail("it started")
        assert "error: the disk of the data directory is full" in server.tail()
        assert "Traceback" not in server.tail()
    with server, platform_at(server.url) as platform:
        platform.deploy("first", COUNTING)
        assert platform.call("first") == 1


def recorded(platform: Platform) -> int:
    """The neighbour's calls that have a record."""
    calls: int = platform.http.get(f"/functions/{Neighbour.NAME}/metrics").json()["calls"]
    return calls
