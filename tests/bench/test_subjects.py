import platform
from pathlib import Path

import pytest
from bench.subjects.base import SetupFailed
from bench.subjects.installing import npm_install
from bench.subjects.restate import Restate


def test_a_peer_that_cannot_be_got_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupFailed, match="npm is not installed"):
        npm_install(tmp_path / "npm", "restate", "1")


def test_a_machine_that_restate_has_no_server_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SetupFailed, match="riscv64"):
        Restate(lambda text: None, tmp_path)
    assert not list(tmp_path.iterdir())
