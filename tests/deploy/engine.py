"""A Docker engine of this test's own: in its own network, mount and pid namespace, on a folder of its own.

Nothing of it reaches the host: its bridges, firewall rules and published ports live in its network, and when its first process
ends the kernel ends every container with it. Commands that have to reach a container run inside, through ``nsenter``.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

START_S = 90.0
STOP_S = 60.0
_GROUPS = Path("/sys/fs/cgroup")
_APART = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_RUN = """
set -e
ip link set lo up
mount --make-rprivate /
mount -t tmpfs tmpfs /run
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" -H "unix://$1/docker.sock" \
  --cgroup-parent "$2" --log-level warn
"""


def find(program: str) -> str | None:
    """The distribution's own program first: others of the same name may be newer clients."""
    return shutil.which(program, path="/usr/bin:/usr/sbin:/bin:/sbin") or shutil.which(program)


ENGINE = ("dockerd", "docker", "nsenter", "ip", "iptables")
COMPOSE = (*ENGINE, "docker-compose", "mmdebstrap")


def missing(*programs: str) -> list[str]:
    """What of ``programs`` is not there; of what compose needs, when none is named."""
    return [program for program in programs or COMPOSE if find(program) is None]


@dataclass(frozen=True, slots=True)
class Engine:
    folder: Path
    pid: int
    """of the first process in the engine's namespaces"""

    @property
    def environment(self) -> dict[str, str]:
        """For clients: the engine's address, and the classic builder in both of them."""
        return {
            **os.environ,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKER_CONFIG": str(self.folder / "config"),
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
        }

    def run(
        self,
        *argv: str,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> str:
        """A client's stdout. Raises AssertionError with everything it said when it fails."""
        done = subprocess.run(
            [find(argv[0]) or argv[0], *argv[1:]],
            env={**self.environment, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def inside(self, *argv: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        """A program of the host among the engine's processes and in its network, where published ports are."""
        spaces = [f"--{name}=/proc/{self.pid}/ns/{name}" for name in ("net", "pid")]
        return subprocess.run(
            ["nsenter", *spaces, *argv],
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Raises AssertionError with the engine's log when it does not start."""
    group = f"nova-test-{os.getpid()}"
    log = folder / "dockerd.log"
    with log.open("w") as out:
        outer = subprocess.Popen(
            [*_APART, "sh", "-c", _RUN, "sh", str(folder), f"/{group}"],
            stdout=out,
            stderr=out,
            env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    try:
        yield _started(outer, folder, log)
    finally:
        _stop(outer)
        _forget_groups(group)


def _started(outer: "subprocess.Popen[bytes]", folder: Path, log: Path) -> Engine:
    deadline = time.monotonic() + START_S
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while time.monotonic() < deadline and outer.poll() is None:
        if pids := children.read_text().split():
            engine = Engine(folder, int(pids[0]))
            if (folder / "docker.sock").exists():
                with contextlib.suppress(AssertionError):
                    engine.run("docker", "version", timeout=START_S)
                    return engine
        time.sleep(0.1)
    raise AssertionError(f"dockerd did not start:\n{log.read_text()}")


def _stop(outer: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to dockerd; ``--kill-child`` and the pid namespace see to the rest."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    with contextlib.suppress(OSError):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGTERM)
    try:
        outer.wait(STOP_S)
    except subprocess.TimeoutExpired:
        outer.kill()
        outer.wait()
        print("dockerd had to be killed", file=sys.stderr)


def _forget_groups(name: str) -> None:
    """Empty control groups that containers and what ran in them left behind, the innermost first."""
    for top in (_GROUPS / name, *_GROUPS.glob(f"*/{name}")):
        for folder in sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda p: -len(p.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            top.rmdir()
