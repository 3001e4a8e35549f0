"""Units for systemd: complete, and taken by systemd itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").iterdir())
PLANES = {"nova", "comet", "corona", "nebula", "aurora", "zenith"}


def test_the_target_wants_every_plane() -> None:
    target = next(unit for unit in UNITS if unit.name == "nova.target").read_text()
    wanted = next(line for line in target.splitlines() if line.startswith("Wants="))
    sockets = {"nova.socket", "zenith.socket"}
    assert set(wanted.removeprefix("Wants=").split()) == {f"{plane}.service" for plane in PLANES} | sockets


@pytest.mark.parametrize("plane", ["nova", "zenith"])
def test_a_socket_is_where_its_plane_would_listen(plane: str) -> None:
    units = {unit.name: unit.read_text() for unit in UNITS}
    (listens,) = re.findall(r"^ListenStream=(\S+)$", units[f"{plane}.socket"], re.MULTILINE)
    assert re.search(rf"^ExecStart=.*(--listen|--http) {re.escape(listens)}", units[f"{plane}.service"], re.MULTILINE)
    assert f"Requires={plane}.socket" in units[f"{plane}.service"].splitlines()


def test_only_what_runs_functions_is_root_and_keeps_its_groups() -> None:
    rooted = {unit.stem for unit in UNITS if unit.suffix == ".service" and "User=nova" not in unit.read_text()}
    assert rooted == {"comet", "nova-up"}
    for unit in UNITS:
        if unit.stem in rooted:
            assert {"Delegate=yes", "OOMPolicy=continue"} <= set(unit.read_text().splitlines())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """The programs are replaced by one that is there; everything else is as it is installed."""
    for unit in UNITS:
        lines = [
            "ExecStart=/bin/true" if line.startswith("ExecStart=") else line for line in unit.read_text().splitlines()
        ]
        (tmp_path / unit.name).write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)],
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:/lib/systemd/system"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if any(unit.name in line for unit in UNITS)]
    assert ours == []
