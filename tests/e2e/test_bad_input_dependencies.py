"""Dependencies that cannot be installed, on a running platform with a package index of the test's own."""

from collections.abc import Iterator

import pytest

from tests.e2e.index import PACKAGE, TEXT, USING_IT, Index, package_index
from tests.e2e.misuse import Neighbour, Platform, platform_at
from tests.e2e.server import RunningNova

NAME, MISSING = "needy", "nova-test-no-such-package"


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with package_index() as index:
        yield index


@pytest.fixture(scope="module")
def platform(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        index.use(monkeypatch)
        with RunningNova(tmp_path_factory.mktemp("needy") / "data") as running, platform_at(running.url) as platform:
            yield platform


@pytest.fixture(scope="module")
def neighbour(platform: Platform) -> Neighbour:
    return Neighbour(platform)


@pytest.fixture(autouse=True)
def around(platform: Platform, neighbour: Neighbour) -> Iterator[None]:
    with neighbour.unharmed():
        yield
    platform.delete(NAME)


def test_a_dependency_that_does_not_exist_is_named(platform: Platform) -> None:
    """BU4: the deploy is accepted, its build fails with the installer's words, and calls say that it did."""
    deployed = platform.deploy(NAME, USING_IT, dependency_files={"requirements.txt": f"{MISSING}==1.0\n"})
    assert deployed["version"] is None
    build = platform.build_ended(deployed["build_id"])
    assert build["status"] == "failed"
    assert MISSING in build["error"]
    shown = platform.http.get(f"/functions/{NAME}").json()
    assert (shown["compile_status"], MISSING in shown["compile_error"]) == ("failed", True)
    answer = platform.post(NAME)
    assert (answer.status_code, answer.json()["code"]) == (424, "build_failed")
    assert MISSING in answer.json()["detail"]
    assert answer.json()["build_id"] == deployed["build_id"]
    log = platform.http.get(f"/builds/{deployed['build_id']}/logs").text
    assert MISSING in log


@pytest.mark.parametrize(
    "requirements",
    [
        pytest.param(f"{PACKAGE}==99.0\n", id="a version that does not exist"),
        pytest.param("this is ][ no requirement\n", id="no requirement"),
        pytest.param("--index-url http://127.0.0.1:9/simple\nx\n", id="another index"),
        pytest.param("-r /etc/shadow\n", id="a file of the host"),
        pytest.param("file:///etc\n", id="a folder of the host"),
        pytest.param("git+http://127.0.0.1:9/x\n", id="a repository"),
    ],
)
def test_requirements_that_cannot_be_met_leave_the_live_version_serving(platform: Platform, requirements: str) -> None:
    """BU4: an update whose build fails changes nothing for the callers."""
    platform.deploy(NAME, "def handler(event):\n    return 'old'\n")
    assert platform.call(NAME) == "old"
    changed = platform.http.patch(
        f"/functions/{NAME}", json={"code": USING_IT, "dependency_files": {"requirements.txt": requirements}}
    )
    if changed.status_code == 400:
        assert changed.json()["code"] == "validation_failed"
    else:
        assert changed.status_code == 200, changed.text
        build = platform.build_ended(changed.json()["build_id"])
        assert (build["status"], bool(build["error"])) == ("failed", True)
        assert "root:" not in build["error"]
    assert platform.call(NAME) == "old"
    repaired = platform.http.patch(
        f"/functions/{NAME}", json={"code": USING_IT, "dependency_files": {"requirements.txt": f"{PACKAGE}==1.0\n"}}
    )
    assert platform.build_ended(repaired.json()["build_id"])["status"] == "succeeded", repaired.text
    assert platform.call(NAME) == TEXT
