"""Running orbit inside the test process, against the shared server unless told otherwise."""

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nova.cli import orbit as program
from tests.e2e.server import NovaServer


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def ok(self) -> "Result":
        assert self.code == 0, self.err
        return self


Orbit = Callable[..., Result]


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches the command line."""
    for name in list(os.environ):
        if name.startswith(("NOVA_", "ZENITH_")) or name == "NO_COLOR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def orbit_alone(plain_environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orbit:
    """orbit without a server of its own."""

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["orbit", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            program.main()
        shown = capsys.readouterr()
        return Result(int(ended.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture
def orbit(nova_server: NovaServer, orbit_alone: Orbit, monkeypatch: pytest.MonkeyPatch) -> Orbit:
    """orbit against the shared server."""
    monkeypatch.setenv("ZENITH_URL", nova_server.url)
    return orbit_alone


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Write a project folder; ``function.yaml`` is made of the keywords unless a file of that name is given."""

    def write(name: str, files: dict[str, str], **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = [f"{key}: {json.dumps(value)}" for key, value in {"name": name, **settings}.items()]
        for path, text in {"function.yaml": "\n".join(lines), **files}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder

    return write
