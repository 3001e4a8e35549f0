"""The whole way: a function that asks for Docker, deployed and called through the API of a daemon."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import imaging
from tests.backends.docker import ground
from tests.e2e.server import RunningNova

pytestmark = pytest.mark.root

CODE = (
    "import os\n\n\ndef handler(event, context):\n    return {'got': event, 'nova': sorted(os.listdir('/opt/nova'))}\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNova]:
    if reason := ground.missing():
        pytest.skip(reason)
    imaging.image("python", "tar")
    folder = tmp_path_factory.mktemp("docker-up")
    folder.chmod(0o755)
    settings = folder / "nova.json"
    host = f"unix://{ground.engine().folder}/docker.sock"
    settings.write_text(json.dumps({"docker": {"host": host}, "images": {"dir": str(imaging.cache())}}))
    with RunningNova(folder / "data", "--config", str(settings)) as running:
        yield running


def call(server: RunningNova, path: str, body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, trust_env=False, timeout=60)


def test_a_function_in_a_container(server: RunningNova) -> None:
    """Deployed, called cold and warm; a second one starts in the container that stands ready by then."""
    function = {"name": "boxed", "runtime": "python", "handler": "main.handler", "backend": "docker", "code": CODE}
    made = call(server, "/functions", function)
    assert (made.status_code, made.json()["backend"]) == (201, "docker"), made.text
    answers = [call(server, "/functions/boxed/invoke", {"n": number}).json() for number in range(2)]
    assert [answer["output"]["got"] for answer in answers] == [{"n": 0}, {"n": 1}]
    assert [answer["cold_start"] for answer in answers] == [True, False]
    assert "boot" in answers[0]["output"]["nova"], "this is not the host's file system"
