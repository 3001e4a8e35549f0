"""Commands that go on until Ctrl-C: watching and following, as processes with pipes."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.conftest import Orbit
from tests.e2e.server import ORBIT, NovaServer, clean_environment

Project = Callable[..., Path]
PRINTS = "def handler(event, context):\n    print('saw', event['n'])\n    return event['n'] * 2\n"


class Going:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def until(self, text: str) -> list[str]:
        """Lines up to the one that has ``text``; the test's own timeout is what ends a wait for nothing."""
        assert self._process.stdout is not None
        seen = []
        for line in self._process.stdout:
            seen.append(line.rstrip("\n"))
            if text in line:
                return seen
        raise AssertionError(f"{text!r} did not come:\n" + "\n".join(seen))


@contextmanager
def going(server: NovaServer, *arguments: str) -> Iterator[Going]:
    """orbit as a process; at the end Ctrl-C, which must be quiet."""
    process = subprocess.Popen(
        [ORBIT, "--server", server.url, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(),
    )
    with process:
        try:
            yield Going(process)
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=20)[0]
    assert process.returncode == 130
    assert "Traceback" not in rest


def test_logs_follow_what_comes(orbit: Orbit, nova_server: NovaServer, project: Project) -> None:
    orbit("deploy", str(project("followed", {"main.py": PRINTS}, runtime="python"))).ok()
    orbit("invoke", "followed", "-d", '{"n": 1}').ok()
    with going(nova_server, "logs", "followed", "-f", "--since", "1m") as logs:
        first = logs.until("success")
        assert "saw 1" in first
        orbit("invoke", "followed", "-d", '{"n": 2}').ok()
        assert "saw 2" in logs.until("success")


def test_deploy_watch_deploys_what_is_saved(nova_server: NovaServer, project: Project) -> None:
    folder = project("watched", {"main.py": PRINTS}, runtime="python")
    with going(nova_server, "deploy", str(folder), "--watch") as watch:
        watch.until("watched version 1 is live")
        watch.until("watching")
        (folder / "function.yaml").write_text("name: watched\nruntime: python\nmemory: 1\n")
        watch.until("'memory' is not known")
        watch.until("watching")
        (folder / "function.yaml").write_text("name: watched\nruntime: python\n")
        (folder / "main.py").write_text(PRINTS.replace("* 2", "* 3"))
        watch.until("watched version 2 is live")


def test_invoke_watch_calls_with_what_is_saved(
    orbit: Orbit, nova_server: NovaServer, project: Project, tmp_path: Path
) -> None:
    orbit("deploy", str(project("recalled", {"main.py": PRINTS}, runtime="python"))).ok()
    file = tmp_path / "input.json"
    file.write_text('{"n": 4}')
    with going(nova_server, "invoke", "recalled", "-f", str(file), "--watch") as watch:
        assert "8" in watch.until("watching")
        file.write_text('{"n":')
        assert any("error:" in line for line in watch.until("watching"))
        file.write_text('{"n": 5}')
        assert "10" in watch.until("watching")
    assert orbit("invoke", "recalled", "--watch").code == 2
