"""PostgreSQL killed under a running platform, and back."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.misuse import COUNTING, Neighbour, Platform, platform_at, until
from tests.e2e.server import RunningNova

CALLERS = 4
NEW = "def handler():\n    return 'new'\n"
NEEDS_THE_DATABASE = (
    ("POST", "/functions", {"name": "late", "runtime": "python", "code": COUNTING}),
    ("PATCH", "/functions/sleeper", {"code": NEW}),
    ("DELETE", "/functions/sleeper", None),
    ("GET", "/functions", None),
    ("POST", "/functions/nobody/invoke", None),
    ("GET", "/functions/sleeper/logs", None),
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningNova]:
    with RunningNova(tmp_path / "data") as running:
        yield running


@pytest.fixture
def platform(running: RunningNova) -> Iterator[Platform]:
    with platform_at(running.url) as platform:
        yield platform


class Database:
    """The embedded server of a platform, from outside."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "postgres"

    @property
    def pid(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().split("\n", 1)[0])

    def kill(self) -> int:
        """SIGKILL its first process; the others follow. What its number was."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_backend(self) -> None:
        """SIGKILL a process that serves a connection: PostgreSQL then ends all of them and recovers by itself."""
        pid = self.pid
        for entry in Path("/proc").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                if entry.name.isdigit() and parent_of(entry) == pid and b"[local]" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
                    return
        raise AssertionError("nobody is connected")

    def replaced(self, former: int, platform: Platform) -> bool:
        """Is there another one, and does the platform have it?"""
        try:
            return self.pid != former and ready(platform)
        except (FileNotFoundError, ValueError):
            return False  # its file is being written

    @contextmanager
    def unable_to_start(self) -> Iterator[None]:
        settings = self._folder / "postgresql.conf"
        good = settings.read_text()
        settings.write_text(good + "\nno_such_setting = 1\n")
        try:
            yield
        finally:
            settings.write_text(good)


@pytest.fixture
def postgres(running: RunningNova) -> Database:
    return Database(running.data_dir)


def parent_of(process: Path) -> int | None:
    """The parent's pid of a folder in /proc; None when it has just ended."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def ready(platform: Platform) -> bool:
    return platform.http.get("/health/ready").status_code == 200


@contextmanager
def load(platform: Platform, name: str) -> Iterator[Counter[int]]:
    """Several callers without a pause; their answers by status. All of them have ended at the end."""
    answers: Counter[int] = Counter()
    stop = threading.Event()

    def call() -> None:
        with platform_at(platform.url) as own:
            while not stop.is_set():
                answers[own.post(name).status_code] += 1

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield answers
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def test_a_killed_database_comes_back_by_itself_and_no_call_notices(
    platform: Platform, postgres: Database, running: RunningNova
) -> None:
    """EX8: killed twice under load, then one of its backends: every warm call is answered, and has its one record."""
    platform.deploy("busy", COUNTING, max_replicas=2)
    platform.call("busy")
    deployed: dict[str, int] = {}
    with load(platform, "busy") as answers:
        for _ in range(2):
            until(partial(lambda enough: answers[200] > enough, answers[200] + 50), "calls are running")
            former = postgres.kill()
            for name in (f"during-{len(deployed)}" for _ in range(5)):
                deploy = platform.http.post("/functions", json={"name": name, "runtime": "python", "code": COUNTING})
                deployed[name] = deploy.status_code
            until(partial(postgres.replaced, former, platform), "the database is back")
        postgres.kill_backend()
        for name in ("with-backend-1", "with-backend-2"):
            deploy = platform.http.post("/functions", json={"name": name, "runtime": "python", "code": COUNTING})
            deployed[name] = deploy.status_code
        until(partial(ready, platform), "the database has recovered")
    assert set(answers) == {200}
    assert set(deployed.values()) <= {201, 503}
    for name, status in deployed.items():
        if status == 201 or platform.http.get(f"/functions/{name}").status_code == 200:
            assert platform.call(name) == 1, "what was accepted is there, and nothing is there by half"
    expected = answers[200] + 1
    until(lambda: len(recorded(platform, "busy")) >= expected, "every call is recorded")
    ids = recorded(platform, "busy")
    assert (len(ids), len(set(ids))) == (expected, expected)
    until(lambda: platform.http.get("/functions/busy/metrics").json()["calls"] == expected, "each counts once")
    assert running.stop() == 0


def test_without_the_database_calls_go_on_and_the_rest_says_so(platform: Platform, postgres: Database) -> None:
    """GW12: an outage that lasts: 503 with Retry-After for what needs the database, and all is well when it ends."""
    neighbour = Neighbour(platform)
    platform.deploy("sleeper", COUNTING)
    calls = len(recorded(platform, Neighbour.NAME))
    with neighbour.unharmed():
        with postgres.unable_to_start():
            platform.deploy("just", COUNTING)
            postgres.kill()
            until(lambda: not ready(platform), "readiness says no")
            with ThreadPoolExecutor(len(NEEDS_THE_DATABASE)) as pool:
                for answer in pool.map(
                    lambda wanted: platform.http.request(*wanted[:2], json=wanted[2]), NEEDS_THE_DATABASE
                ):
                    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable"), answer.text
                    assert int(answer.headers["retry-after"]) >= 1
            health = platform.http.get("/health").json()
            assert health["status"] != "ok"
        until(lambda: ready(platform), "the database is back")
        assert platform.call("just") == 1, "what was accepted before is there"
        assert platform.call("sleeper") == 1, "what was refused has not happened"
        assert platform.http.get("/functions/late").status_code == 404
        changed = platform.http.patch("/functions/sleeper", json={"code": NEW})
        assert changed.status_code == 200, changed.text
        assert platform.call("sleeper") == "new", "a change acts at once again"
    until(lambda: len(recorded(platform, Neighbour.NAME)) == neighbour.calls, "each call of the outage has its record")
    assert calls < neighbour.calls


def recorded(platform: Platform, function: str) -> list[str]:
    """The ids of every recorded call of a function."""
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page: dict[str, str] = {"function": function, "limit": "500"} | ({"cursor": cursor} if cursor else {})
        answer = platform.http.get("/invocations", params=page).json()
        ids += [item["id"] for item in answer["items"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            return ids


STEPS = 30
DURABLE = f"""
import time, uuid
seen, again = {{}}, []
def work(n):
    if n in seen:
        again.append(n)
    time.sleep(0.05)
    return str(uuid.uuid4())
def handler(event, context):
    for n in range({STEPS}):
        value = context.step(f"s{{n}}", work, n)
        if seen.setdefault(n, value) != value:
            again.append(n)
    return {{"seen": [seen[n] for n in range({STEPS})], "again": again}}
"""


def test_a_durable_run_outlives_its_database_and_no_step_that_was_answered_runs_again(
    platform: Platform, postgres: Database
) -> None:
    """DU1: killed in the middle of a run, first as a whole and then one of its backends."""
    platform.deploy("lasting", DURABLE, mode="durable", timeout_s=30, max_replicas=1)
    begun = platform.http.post("/functions/lasting/invoke-durable", json={"input": None})
    assert begun.status_code == 202, begun.text
    path = f"/durable-executions/{begun.json()['execution_id']}"

    def recorded_steps() -> list[dict[str, object]]:
        answer = platform.http.get(f"{path}/steps")
        return list(answer.json()["items"]) if answer.status_code == 200 else []

    until(lambda: len(recorded_steps()) >= 3, "steps are recorded")
    former = postgres.kill()
    until(partial(postgres.replaced, former, platform), "the database is back")
    until(lambda: len(recorded_steps()) >= 8, "the run goes on")
    postgres.kill_backend()

    def ended() -> bool:
        answer = platform.http.get(path)
        return answer.status_code == 200 and answer.json()["ended_at"] is not None

    until(ended, "the execution ends")
    execution = platform.http.get(path).json()
    assert execution["status"] == "completed", execution
    assert execution["output"]["again"] == []
    assert execution["output"]["seen"] == [step["output"] for step in recorded_steps()]
