"""``make build``: launchers that work from anywhere, and the agent as one file."""

import hashlib
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from nova import __version__
from nova.execution.launch import launch_for
from tests.agent import harness
from tests.e2e.server import clean_environment

ROOT = Path(__file__).parents[2]
COMMANDS = ("nova", "comet", "corona", "nebula", "aurora", "zenith", "orbit")


@pytest.fixture(scope="module")
def bin_folder() -> Path:
    subprocess.run(["bash", str(ROOT / "scripts/build.sh")], check=True, capture_output=True, timeout=60)
    return ROOT / "bin"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_launcher_starts_its_command_also_through_a_link(name: str, bin_folder: Path, tmp_path: Path) -> None:
    link = tmp_path / name
    link.symlink_to(bin_folder / name)
    done = subprocess.run(
        [str(link), "--help"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: {name}" in done.stdout


def test_the_launcher_runs_this_checkout(bin_folder: Path) -> None:
    done = subprocess.run(
        [str(bin_folder / "nova"), "version"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == __version__


@pytest.mark.anyio
async def test_the_agent_in_one_file_runs_a_function(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(
        runtime: str,
        code: Path,
        *,
        hello_deadline_s: float = 60.0,
        reload_dir: Path | None = None,
        relayed: bool = False,
    ) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        resolved = harness.RUNTIMES.resolve(runtime)
        config = {
            "token_sha256": hashlib.sha256(harness.TOKEN).hexdigest(),
            "instance_id": "instance-1",
            "runtime": resolved.runtime,
            "worker": launch_for(resolved).as_dict(),
            "code_dir": str(code),
        }
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [str(bin_folder / "nova-agent"), str(theirs.fileno()), json.dumps(config)],
                pass_fds=[theirs.fileno()],
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )
        return process, ours

    monkeypatch.setattr(harness, "spawn_agent", spawn)
    code = {"main.py": "def handler(event, context):\n    return {'sum': event['a'] + event['b']}\n"}
    async with harness.guest("python", code, tmp_path) as guest:
        await guest.init()
        assert await guest.value({"a": 2, "b": 3}) == {"sum": 5}


def test_the_agent_says_what_it_wants(bin_folder: Path) -> None:
    done = subprocess.run(
        [str(bin_folder / "nova-agent"), "3"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "usage: nova-agent FD CONFIG" in done.stderr
    assert "Traceback" not in done.stderr
