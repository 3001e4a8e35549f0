"""The committed settings and the compose file: what they name exists, and they say what they should."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nova.cli import planes
from nova.cli.nova import app as nova_app
from nova.config_sources import load

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
PLANES = ("nova", "comet", "corona", "nebula", "aurora", "zenith")
APPS = {
    "nova": nova_app,
    "comet": planes.comet_app,
    "corona": planes.corona_app,
    "nebula": planes.nebula_app,
    "aurora": planes.aurora_app,
    "zenith": planes.zenith_app,
}


def refused(plane: str, argv: list[str]) -> str:
    """What the command line says against ``argv``; nothing when it takes it. Nothing is started."""
    # `--help` at the end checks every option before it without running the command.
    result = CliRunner().invoke(APPS[plane], [*argv, "--help"])
    options = set(re.findall(r"--[a-z-]+", result.output))
    unknown = [word for word in argv if word.startswith("--") and word not in options]
    return "" if result.exit_code == 0 and not unknown else f"{unknown or result.output}"


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_nova_json_serves_the_control_plane_only() -> None:
    loaded = load(file=ROOT / "configs/nova.json", environ={})
    assert loaded.settings.daemon.planes == ["control"]


def test_the_sample_of_one_server_holds_the_defaults() -> None:
    loaded = load(file=ROOT / "configs/nova.yaml", environ={})
    defaults = load(environ={})
    assert loaded.settings == defaults.settings


@pytest.mark.parametrize("plane", PLANES)
def test_the_options_of_each_container_exist(plane: str) -> None:
    assert refused(plane, services()[plane]["command"]) == ""


@pytest.mark.parametrize("plane", PLANES)
def test_image_and_unit_start_their_plane_with_options_that_exist(plane: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stage = dockerfile.split(f" AS {plane}-runtime\n")[1].split("\nFROM ")[0]
    assert refused(plane, json.loads(stage.split("\nCMD ")[1].splitlines()[0])) == ""
    unit = (ROOT / f"deploy/systemd/{plane}.service").read_text()
    start = shlex.split(next(line for line in unit.splitlines() if line.startswith("ExecStart=")))
    assert start[0] == f"ExecStart=/opt/nova/bin/{plane}"
    assert refused(plane, start[1:]) == ""


def test_only_the_door_and_the_database_are_published_and_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"postgres": ["127.0.0.1:5432:5432"], "zenith": ["127.0.0.1:9000:9000"]}


def test_no_container_is_privileged() -> None:
    assert not any(service.get("privileged") for service in services().values())
    assert services()["comet"]["cap_add"] == ["SYS_ADMIN", "NET_ADMIN"]


def test_every_service_heals_and_waits_for_what_it_needs() -> None:
    for name, service in services().items():
        once = name in ("seeder", "rootfs-builder")
        assert service["restart"] == ("on-failure" if once else "unless-stopped"), name
    assert set(services()["zenith"]["depends_on"]) == {"nova", "comet"}


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_docker_compose_takes_the_file() -> None:
    done = subprocess.run(
        ["docker-compose", "-f", str(COMPOSE), "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
