"""``nova up --workers 2``: two processes that a client cannot tell from one, also while one of them is killed."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from nova.domain.ownership import Ownership
from tests.e2e.load import load
from tests.e2e.misuse import COUNTING, Platform, until
from tests.e2e.server import NOVA, RunningNova, clean_environment

TIMED = """
import time
def handler(seconds):
    began = time.monotonic()
    time.sleep(seconds or 0)
    return [began, time.monotonic()]
"""
SEATS = (0, 1)


def owned_by(seat: int, stem: str) -> str:
    """The name of a function that this worker owns."""
    ownership = Ownership(0, len(SEATS))
    candidates = (f"{stem}-{number}" for number in range(1000))
    return next(name for name in candidates if ownership.owner(("default", "default", name)) == seat)


def workers(server: RunningNova) -> dict[int, int]:
    """The processes that serve, by seat: each holds the lock of its place in the data directory."""
    supervisor = server.process.pid
    found = {}
    for text in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        for descriptor in Path(f"/proc/{text}/fd").iterdir():
            with suppress(FileNotFoundError):
                if place := re.fullmatch(rf"{server.data_dir}/nodes/(\d+)/lock", os.readlink(descriptor)):
                    found[int(place[1])] = int(text)
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def most_at_once(times: Sequence[tuple[float, float]]) -> int:
    """How many calls ran at the same moment, by the clock that all instances share."""
    moments = [(began, 1) for began, _ in times] + [(ended, -1) for _, ended in times]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNova]:
    folder = tmp_path_factory.mktemp("workers")
    config = folder / "nova.json"
    config.write_text(json.dumps({"daemon": {"spread_at": 0.05}, "pool": {"max_global_instances": 9}}))
    with RunningNova(folder / "data", "--workers", "2", "--config", str(config)) as running:
        until(lambda: workers(running).keys() == set(SEATS), "both workers are there")
        yield running


@pytest.fixture
def platform(server: RunningNova) -> Iterator[Platform]:
    """Every request on a connection of its own, so that each worker gets some."""
    platform = Platform(server.url)
    platform.http.close()
    limits = httpx.Limits(max_keepalive_connections=0)
    platform.http = httpx.Client(base_url=server.url, timeout=60, trust_env=False, limits=limits)
    yield platform
    platform.close()


def test_both_workers_answer_alike_and_everything_adds_up(platform: Platform) -> None:
    names = [owned_by(seat, "counted") for seat in SEATS]
    for name in names:
        platform.deploy(name, COUNTING, idle_ttl_s=3600)
        # one instance counts them all, whichever worker a call came to
        assert [platform.call(name) for _ in range(10)] == list(range(1, 11))
        assert len(platform.http.get(f"/functions/{name}/logs", params={"tail": 50}).json()["items"]) == 10
        figures = platform.http.get(f"/functions/{name}/metrics").json()
        assert (figures["calls"], figures["since_start"]["total_invocations"]) == (10, 10)
    for _ in range(4):
        stats = platform.http.get("/stats").json()
        rows = {row["function"]: row["instances"] for row in stats["pools"]}
        assert [rows[name] for name in names] == [1, 1]
        assert stats["instances"] == sum(rows.values())
        totals = platform.http.get("/metrics").json()
        assert [totals["functions"][name]["total_invocations"] for name in names] == [10, 10]
        health = platform.http.get("/health").json()
        assert (health["status"], health["pool"]["instances"]) == ("ok", stats["instances"])
    duties = [row["duty"] for row in platform.http.get("/cluster/leaders").json()["items"]]
    assert len(duties) == len(set(duties)) >= 4
    for name in names:
        platform.delete(name)


def test_a_hot_function_is_spread_and_never_has_more_than_its_replicas(server: RunningNova, platform: Platform) -> None:
    name = owned_by(1, "hot")
    platform.deploy(name, TIMED, max_replicas=3)
    with load(server.url, name, callers=12, pause_s=0, event=0.002) as running:
        until(lambda: f'"function": "{name}"' in server.log.read_text(), "it is spread")
        spread_at = time.monotonic()
        until(lambda: running.well_since(spread_at) > 300, "both workers run it")
        assert 2 <= _row(platform, name)["instances"] <= 3
        assert platform.http.patch(f"/functions/{name}", json={"max_replicas": 1}).status_code == 200
        until(lambda: "a function is gathered again" in server.log.read_text(), "it is gathered")
        gathered_at = time.monotonic()
        until(lambda: running.well_since(gathered_at) > 100, "its owner runs it")
    assert not running.failed, running.codes
    assert most_at_once([call.answer["output"] for call in running.calls]) == 3
    # of three instances two were the owner's; a lower bound stops none of them
    assert most_at_once([call.answer["output"] for call in running.calls if call.began > gathered_at]) <= 2
    text = platform.http.get("/metrics/prometheus").text
    counted = re.findall(
        rf'nova_invocations_total{{[^}}]*function="{name}"[^}}]*node="(worker-\d)"[^}}]*}} (\d+)', text
    )
    assert {node for node, count in counted if int(count)} == {"worker-0", "worker-1"}, counted
    platform.delete(name)


def test_the_bound_of_the_node_holds_over_all_workers(platform: Platform) -> None:
    names = [owned_by(seat, f"many{number}") for seat in SEATS for number in range(6)]
    for name in names:
        platform.deploy(name, TIMED, idle_ttl_s=3600)
    for name in names[:6]:
        platform.call(name)  # idle now, and more than the other worker leaves
    with ThreadPoolExecutor(len(names)) as pool:
        answers = [answer.json() for answer in pool.map(lambda name: platform.post(name, 0.5), names)]
    assert [answer["error"] for answer in answers] == [None] * 12
    assert 6 < most_at_once([answer["output"] for answer in answers]) <= 9
    for name in names:
        platform.delete(name)


def test_a_worker_that_is_killed_is_back_and_only_its_own_calls_fail(server: RunningNova, platform: Platform) -> None:
    mine, others = owned_by(0, "mine"), owned_by(1, "others")
    for name in (mine, others):
        platform.deploy(name, TIMED, max_replicas=8, idle_ttl_s=3600)
        platform.call(name)
    before = workers(server)
    instances = set(Path(f"/proc/{before[0]}/task/{before[0]}/children").read_text().split())
    with load(server.url, others) as neighbours, load(server.url, mine, callers=4, event=20) as running:
        until(lambda: _row(platform, mine)["inflight"] == 4, "its calls run")
        os.kill(before[0], signal.SIGKILL)
        running.stop.set()
    assert {call.code for call in running.calls} <= {"broken", "instance_lost"}
    # those whose connections ended with the worker's own front had to connect again
    assert set(neighbours.codes) <= {"broken"}
    assert len(neighbours.failed) <= 4
    until(lambda: platform.post(mine).status_code == 200, "the successor takes calls")  # each waits up to 3 s
    until(lambda: workers(server).get(0, before[0]) != before[0], "there is a successor")
    assert workers(server)[1] == before[1]
    until(lambda: all(gone(int(pid)) for pid in instances), "what it ran is gone")
    until(lambda: platform.http.get("/health").json()["status"] == "ok", "all is well")
    for name in (mine, others):
        platform.delete(name)


def _row(platform: Platform, name: str) -> dict[str, int]:
    rows = {row["function"]: row for row in platform.http.get("/stats").json()["pools"]}
    found: dict[str, int] = rows.get(name, {"inflight": 0})
    return found


def test_what_workers_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "nova.json"
    config.write_text(json.dumps({"grpc": {"enabled": True}}))
    refused = subprocess.run(
        [NOVA, "up", "--workers", "2", "--data-dir", str(tmp_path / "data"), "--config", str(config)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert refused.returncode == 2
    assert "grpc.enabled" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "data").exists()


def test_workers_end_with_their_supervisor_and_all_of_them_on_a_signal(server: RunningNova) -> None:
    """Comes last: the server does not survive it."""
    pids = workers(server).values()
    server.process.kill()
    server.process.wait()
    until(lambda: all(gone(pid) for pid in pids), "the workers are gone")
    with RunningNova(server.data_dir, "--workers", "2") as again:
        pids = workers(again).values()
        assert again.stop() == 0
        assert all(gone(pid) for pid in pids)
