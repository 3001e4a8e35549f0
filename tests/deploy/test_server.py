"""``make build-linux`` and ``make deploy SERVER=…`` against a real sshd on loopback."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nova import __version__
from tests.deploy.waiting import wait_for_port
from tests.e2e.server import clean_environment, free_port

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd needs root here"),
    pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="openssh is not installed"),
]
_SETTINGS = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/user.pub
PasswordAuthentication no
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
"""


@dataclass(frozen=True)
class Server:
    """``deploy`` settings for a host of this test's own; ``ssh`` is its client command."""

    ssh: str
    prefix: Path
    etc: Path
    units: Path

    def deploy(self, server: str = "root@127.0.0.1") -> "subprocess.CompletedProcess[str]":
        env = clean_environment() | {
            "SSH": self.ssh,
            "PREFIX": str(self.prefix),
            "ETC": str(self.etc),
            "UNITS": str(self.units),
        }
        return subprocess.run(
            ["make", "--no-print-directory", "deploy", f"SERVER={server}"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "config").write_text(_SETTINGS.format(port=port, folder=folder))
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd leaves its privileges
    log = folder / "log"
    assert SSHD is not None
    process = subprocess.Popen([SSHD, "-D", "-f", str(folder / "config"), "-E", str(log)])
    try:
        wait_for_port(port, process, log)
        (folder / "units").mkdir()
        yield Server(
            f"ssh -p {port} -i {folder}/user -o UserKnownHostsFile={folder}/known -o BatchMode=yes -F none",
            folder / "opt",
            folder / "etc",
            folder / "units",
        )
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def archive() -> Path:
    """dist/nova-linux.tar.gz as ``make build-linux`` leaves it, from the virtual environment that is there."""
    for script in ("build.sh", "build-linux.sh"):
        subprocess.run(["bash", f"scripts/{script}"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    return ROOT / "dist/nova-linux.tar.gz"


def test_a_server_gets_programs_settings_and_units_and_keeps_its_own(server: Server, archive: Path) -> None:
    assert archive.is_file()
    done = server.deploy()
    assert done.returncode == 0, done.stderr
    env = clean_environment()
    version = subprocess.run(
        [server.prefix / "bin/nova", "version"], env=env, capture_output=True, text=True, check=True
    )
    assert version.stdout.strip() == __version__
    for name in ("comet", "corona", "nebula", "aurora", "zenith", "orbit", "nova-agent"):
        assert os.access(server.prefix / "bin" / name, os.X_OK), name
    assert (server.prefix / "rootfs").is_dir()
    unit = (server.units / "comet.service").read_text()
    assert f"ExecStart={server.prefix}/bin/comet daemon" in unit
    assert f"{server.etc}/nova.json" in unit
    assert (server.etc / "nova.env").stat().st_mode & 0o077 == 0

    (server.etc / "nova.json").write_text('{"daemon": {"log_level": "debug"}}')
    release = os.readlink(server.prefix / "current")
    again = server.deploy()
    assert again.returncode == 0, again.stderr
    assert os.readlink(server.prefix / "current") == release
    assert "debug" in (server.etc / "nova.json").read_text()


def test_a_wrong_server_is_refused_before_anything_is_sent(server: Server, archive: Path) -> None:
    assert archive.is_file()
    for name, says in (("", "usage: make deploy SERVER=user@host"), ("-oProxyCommand=x", "is not a server")):
        done = server.deploy(name)
        assert done.returncode != 0
        assert says in done.stderr
