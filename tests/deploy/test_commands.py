"""The six command lines of the documentation, as they are printed, from the root of the repository after ``make build``."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.waiting import wait_until
from tests.e2e.server import clean_environment

ROOT = Path(__file__).parents[2]
PRINTED = (
    "./bin/nova daemon --http :9001 --config configs/nova.json",
    "./bin/comet daemon --grpc :9090 --config configs/nova.json",
    "./bin/corona daemon --config configs/nova.json --comet-grpc 127.0.0.1:9090",
    "./bin/nebula daemon --config configs/nova.json --comet-grpc 127.0.0.1:9090",
    "./bin/aurora daemon --config configs/nova.json --listen :9002",
    "./bin/zenith serve --listen :9000 --nova-url http://127.0.0.1:9001 --comet-grpc 127.0.0.1:9090",
)
READY_S, STOP_S = 180, 60
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("nsenter") is None, reason="a network of one's own, with these ports, needs root"
)


class Network:
    """A network namespace with nothing but a loopback: the printed ports are free there, whoever runs what outside."""

    def __init__(self) -> None:
        script = "ip link set lo up && echo up && exec sleep 600"
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"

    def argv(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *argv]

    def curl(self, *argv: str) -> str:
        done = subprocess.run(
            self.argv("curl", "-s", "--max-time", "20", *argv), capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout

    def close(self) -> None:
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        self._holder.kill()
        self._holder.wait()


@pytest.fixture(scope="module")
def six() -> Iterator[Network]:
    subprocess.run(["bash", str(ROOT / "scripts/build.sh")], check=True, capture_output=True, timeout=60)
    network = Network()
    home = Path(tempfile.mkdtemp(prefix="nova-home-"))
    log = home / "log"
    started: list[subprocess.Popen[bytes]] = []

    def ready() -> bool:
        over = [process.args for process in started if process.poll() is not None]
        assert not over, f"{over} ended\n{log.read_text()}"
        try:
            health = json.loads(network.curl("http://127.0.0.1:9000/health"))
        except ValueError:
            return False
        return set(health["planes"].values()) == {"ok"}

    try:
        with log.open("wb") as out:
            for line in PRINTED:
                started.append(
                    subprocess.Popen(
                        network.argv(*shlex.split(line)),
                        cwd=ROOT,
                        env=clean_environment() | {"HOME": str(home)},
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
        wait_until(ready, READY_S, lambda: network.curl("http://127.0.0.1:9000/health") + log.read_text()[-4000:])
        yield network
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        network.close()
        shutil.rmtree(home, ignore_errors=True)


def test_the_printed_commands_make_one_platform(six: Network) -> None:
    """Deployed through zenith on nova, called through zenith on comet, counted by aurora."""
    deployed = subprocess.run(
        six.argv("./bin/orbit", "deploy", "examples/csv-stats"),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert deployed.returncode == 0, deployed.stderr
    answer = json.loads(six.curl("-d", '{"csv": "a\\n1\\n2"}', "http://127.0.0.1:9000/functions/csv-stats/invoke"))
    assert answer["output"]["rows"] == 2
    series = six.curl("http://127.0.0.1:9002/metrics")
    counted = [line for line in series.splitlines() if line.startswith("nova_invocations_total{")]
    assert any('function="csv-stats"' in line for line in counted), series[-2000:]


def test_curl_lines_of_the_documents_answer(six: Network) -> None:
    for path, says in (
        ("/health/live", '"status"'),
        ("/health", '"planes"'),
        ("/metrics/prometheus", "nova_uptime_seconds"),
    ):
        assert says in six.curl(f"http://localhost:9000{path}")
