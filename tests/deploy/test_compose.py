"""docker-compose.yml on a real engine: images built without a registry or a network, six planes, a call through the door."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import engine as engines
from tests.deploy.engine import Engine
from tests.deploy.waiting import wait_until

ROOT = Path(__file__).parents[2]
BUILD_S, UP_S, SEED_S = 600, 300, 180
IMAGES = {"BASE_IMAGE": "nova-base", "POSTGRES_IMAGE": "nova-test-postgres"}
PLANES = ("nova", "comet", "corona", "nebula", "aurora", "zenith")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="an engine of one's own needs root"),
    pytest.mark.skipif(bool(engines.missing()), reason=f"not installed: {', '.join(engines.missing())}"),
]


def compose(engine: Engine, *argv: str, timeout: float) -> str:
    return engine.run("docker-compose", "-p", "nova", *argv, timeout=timeout, cwd=ROOT, env=IMAGES)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """With the images of docker-compose.yml. Its folder is not pytest's, which would be kept."""
    folder = Path(tempfile.mkdtemp(prefix="nova-docker-"))
    try:
        with engines.engine(folder) as started:
            env = started.environment | {"DOCKER": engines.find("docker") or "docker"}
            for script in (["wheelhouse.sh"], ["base-image.sh", IMAGES["BASE_IMAGE"]]):
                argv = ["bash", f"scripts/{script[0]}", *script[1:]]
                subprocess.run(argv, cwd=ROOT, env=env, check=True, capture_output=True, timeout=BUILD_S)
            compose(started, "build", timeout=BUILD_S)
            postgres = str(ROOT / "tests/deploy/postgres")
            started.run("docker", "build", "-q", "-t", IMAGES["POSTGRES_IMAGE"], postgres, timeout=BUILD_S)
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Engine]:
    try:
        compose(engine, "up", "-d", "--no-build", timeout=UP_S)
        yield engine
    finally:
        compose(engine, "down", "-v", "--timeout", "10", timeout=UP_S)


def ask(engine: Engine, path: str, body: str | None = None) -> tuple[int, bytes]:
    """What the published port answers, from where it is published."""
    more = [] if body is None else ["-d", body]
    url = f"http://127.0.0.1:9000{path}"
    done = engine.inside("curl", "-s", "--max-time", "20", "-w", "\n%{http_code}", *more, url, timeout=30)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status or 0), answer.encode()


def state(engine: Engine, service: str) -> dict[str, Any]:
    shown = engine.run("docker", "inspect", "--format", "{{json .State}}", f"nova_{service}_1", timeout=30)
    found: dict[str, Any] = json.loads(shown)
    return found


def logs(engine: Engine) -> str:
    return compose(engine, "logs", "--no-color", "--tail", "30", timeout=30)


def test_the_seeded_functions_answer_through_the_published_door(running: Engine) -> None:
    def seeded() -> bool:
        return bool(state(running, "seeder")["Status"] == "exited")

    wait_until(seeded, SEED_S, lambda: logs(running))
    assert state(running, "seeder")["ExitCode"] == 0, logs(running)

    status, answer = ask(running, "/functions/csv-stats/invoke", '{"csv": "a\\n1\\n2\\n3"}')
    assert status == 200, (answer, logs(running))
    assert json.loads(answer)["output"]["rows"] == 3
    status, answer = ask(running, "/functions/word-count/invoke", '{"text": "to be or not to be"}')
    assert status == 200, (answer, logs(running))
    assert json.loads(answer)["output"]["words"] == 6


def test_every_container_says_that_it_is_well(running: Engine) -> None:
    def well() -> bool:
        return all(state(running, plane)["Health"]["Status"] == "healthy" for plane in PLANES)

    wait_until(well, UP_S, lambda: logs(running))
    status, answer = ask(running, "/health")
    assert status == 200
    assert set(json.loads(answer)["planes"].values()) == {"ok"}


def test_limits_are_hard_in_the_container_although_it_is_not_privileged(running: Engine) -> None:
    script = "sed 's/exec comet/exec nova/' /opt/nova/bin/comet.sh | sh -s doctor -o json"
    shown = running.run("docker", "exec", "nova_comet_1", "sh", "-c", script, timeout=60)
    found = {(one["part"], one["name"]): one["standing"] for one in json.loads(shown)}
    sandbox = {name: standing for (part, name), standing in found.items() if part == "sandbox"}
    assert set(sandbox.values()) == {"ok"}, shown
    assert found["runtimes", "node"] == "ok"


def test_a_plane_that_dies_is_started_again(running: Engine) -> None:
    before = state(running, "nebula")
    killed = running.inside("sh", "-c", f"kill -9 {before['Pid']}", timeout=30)
    assert killed.returncode == 0, killed.stderr

    def back() -> bool:
        now = state(running, "nebula")
        return bool(now["Status"] == "running" and now["Pid"] != before["Pid"])

    wait_until(back, UP_S, lambda: logs(running))
