"""The daemon is killed, in the middle of deploys, calls and builds, and started again on its data directory."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.e2e.index import PACKAGE, TEXT, USING_IT, package_index
from tests.e2e.misuse import COUNTING, Neighbour, platform_at, until
from tests.e2e.server import RunningNova

DEPLOYERS = 2
BUSY = """
import os, time
def handler(event):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(600)
    print("running", flush=True)
    time.sleep(600)
"""


def kill(running: RunningNova) -> None:
    """SIGKILL the daemon; everything that it had started must be gone soon after, but the database."""
    family = descendants(running.process.pid)
    assert family, "it had children"
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    until(lambda: not (family & living()), "nothing of the daemon is left")


def living() -> set[tuple[int, str]]:
    """Every process but PostgreSQL's, as pid and start time; those that have ended and only wait to be seen are not alive."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX" and b"postgres" not in (entry / "cmdline").read_bytes():
                    found.add((int(entry.name), fields[19]))
    return found


def descendants(pid: int) -> set[tuple[int, str]]:
    """Children of a process, their children, and so on, without PostgreSQL's."""
    alive = living()
    parents = {}
    for number, _ in alive:
        with contextlib.suppress(OSError):
            parents[number] = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while more := {number for number, parent in parents.items() if parent in family} - family:
        family |= more
    return {(number, start) for number, start in alive if number in family and number != pid}


@contextlib.contextmanager
def deploying(url: str) -> Iterator[tuple[set[str], set[str]]]:
    """Deploys without a pause, until the server is gone: the names tried, and those that were answered with 201."""
    tried: set[str] = set()
    accepted: set[str] = set()

    def deploy(number: int) -> None:
        with platform_at(url) as platform, contextlib.suppress(httpx.HTTPError):
            for count in range(1000):
                tried.add(name := f"f-{number}-{count}")
                platform.deploy(name, COUNTING)
                accepted.add(name)

    threads = [threading.Thread(target=deploy, args=(number,)) for number in range(DEPLOYERS)]
    for thread in threads:
        thread.start()
    yield tried, accepted
    for thread in threads:
        thread.join()


def at_least(count: int, names: set[str]) -> bool:
    return len(names) >= count


def test_deploys_are_whole_or_not_at_all(tmp_path: Path) -> None:
    """DB10: killed again and again in the middle of deploys; whatever was answered with 201 is there and can be called."""
    data, everything, promised = tmp_path / "data", set[str](), set[str]()
    for count in (3, 8):
        with RunningNova(data) as running:
            everything, promised = set(), set()
            with deploying(running.url) as (tried, accepted):
                until(partial(at_least, count, accepted), "some deploys are through")
                kill(running)
            everything |= tried
            promised |= accepted
        with RunningNova(data) as running, platform_at(running.url) as platform:
            there = {item["name"] for item in platform.http.get("/functions", params={"limit": 500}).json()["items"]}
            assert promised <= there <= everything
            for name in sorted(promised)[:3] + sorted(there - promised):
                assert platform.call(name) == 1, "and it is whole"
            for name in there:
                platform.delete(name)
            assert running.stop() == 0


def test_nothing_of_a_killed_daemon_is_left_running(tmp_path: Path) -> None:
    """AG27: calls in flight end for their callers, guests and their descendants die, and the functions are still there."""
    data = tmp_path / "data"
    with RunningNova(data) as running, platform_at(running.url) as platform:
        Neighbour(platform)
        platform.deploy("busy", BUSY)
        ended = threading.Event()

        def call() -> None:
            with platform_at(running.url) as own, pytest.raises(httpx.HTTPError):
                own.post("busy")
            ended.set()

        caller = threading.Thread(target=call)
        caller.start()
        until(lambda: platform.http.get("/stats").json()["inflight"] == 1, "the call runs")
        before = platform.http.get("/functions").json()
        kill(running)
        assert ended.wait(10), "the caller was not left hanging"
        caller.join()
    with RunningNova(data) as running, platform_at(running.url) as platform:
        assert platform.http.get("/functions").json() == before
        assert platform.call(Neighbour.NAME) == 1
        assert platform.http.get("/stats").json()["inflight"] == 0
        assert running.stop() == 0


def test_a_build_whose_daemon_is_killed_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BU2: accepted is accepted: the build starts over once its lease has run out, and the function can be called."""
    config = tmp_path / "nova.yaml"
    config.write_text("queue:\n  lease: 2s\n")
    data = tmp_path / "data"
    with package_index() as index:
        index.use(monkeypatch)
        with RunningNova(data, "--config", str(config)) as running, platform_at(running.url) as platform:
            platform.deploy("live", COUNTING)
            index.open.clear()
            index.asked.clear()
            requirements = {"requirements.txt": f"{PACKAGE}==1.0\n"}
            new = platform.deploy("new", USING_IT, dependency_files=requirements)
            changed = platform.http.patch("/functions/live", json={"code": USING_IT, "dependency_files": requirements})
            assert index.asked.wait(30), "the build is under way"
            kill(running)
        with RunningNova(data, "--config", str(config)) as running, platform_at(running.url) as platform:
            assert platform.call("live") == 1, "the version before the build serves"
            index.open.set()
            for build_id in (new["build_id"], changed.json()["build_id"]):
                assert platform.build_ended(build_id)["status"] == "succeeded"
            assert platform.call("new") == TEXT
            assert platform.call("live") == TEXT
            assert running.stop() == 0
