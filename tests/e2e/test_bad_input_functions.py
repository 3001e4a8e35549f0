"""Deploys and calls that name what is not there, or ask for what cannot be."""

import base64
import io
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.misuse import Neighbour, Platform, platform_at
from tests.e2e.server import NovaServer

NAME = "wanted"
GOOD: dict[str, Any] = {"name": NAME, "runtime": "python", "code": "def handler(event):\n    return event\n"}


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


@pytest.fixture(scope="module")
def neighbour(platform: Platform) -> Iterator[Neighbour]:
    yield Neighbour(platform)
    platform.delete(Neighbour.NAME)


@pytest.fixture(autouse=True)
def around(platform: Platform, neighbour: Neighbour) -> Iterator[None]:
    with neighbour.unharmed():
        yield
    platform.delete(NAME)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/functions/nobody"),
        ("DELETE", "/functions/nobody"),
        ("PATCH", "/functions/nobody"),
        ("POST", "/functions/nobody/invoke"),
        ("POST", "/functions/nobody/invoke?qualifier=3"),
        ("GET", "/fn/nobody"),
        ("GET", "/functions/nobody/logs"),
        ("GET", "/functions/nobody/metrics"),
        ("GET", "/functions/nobody/versions"),
        ("GET", "/functions/nobody/aliases"),
        ("GET", "/functions/nobody/builds"),
        ("POST", "/functions/nobody/versions/1/activate"),
        ("GET", "/builds/no-such-build"),
        ("GET", "/invocations/no-such-call"),
    ],
)
def test_what_is_not_there_is_404(platform: Platform, method: str, path: str) -> None:
    """AP3: an unknown resource is 404 under every route, and says which it is."""
    answer = platform.http.request(method, path, json={} if method != "GET" else None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text
    assert path.split("/")[2].partition("?")[0] in answer.json()["detail"]


def test_an_unknown_version_or_alias_is_404(platform: Platform) -> None:
    platform.http.post("/functions", json=GOOD)
    for qualifier in ("2", "2000000000", "canary"):
        answer = platform.http.post(f"/functions/{NAME}/invoke", params={"qualifier": qualifier}, json=1)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert qualifier in answer.json()["detail"]
    for qualifier in ("a b", "-1", "0x1", "999999999999", "../live", "é"):
        answer = platform.http.post(f"/functions/{NAME}/invoke", params={"qualifier": qualifier}, json=1)
        assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed"), qualifier
    assert platform.call(NAME, 1) == 1


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("runtime", {"runtime": "cobol"}),
        ("runtime", {"runtime": ""}),
        ("runtime", {"runtime": None}),
        ("runtime", {"runtime": 3}),
        ("runtime", {"runtime": "python2.7"}),
        ("colour", {"colour": "red"}),
        ("limits.gpus", {"limits": {"gpus": 1}}),
        ("network_policy.isolation_mode", {"network_policy": {"isolation_mode": "open"}}),
        ("network_policy.egress_rules.0.host", {"network_policy": {"egress_rules": [{"host": "1.2.3.4.5"}]}}),
        ("memory_mb", {"memory_mb": 1}),
        ("memory_mb", {"memory_mb": "512"}),
        ("memory_mb", {"memory_mb": 1e300}),
        ("timeout_s", {"timeout_s": 0}),
        ("timeout_s", {"timeout_s": 901}),
        ("instance_concurrency", {"instance_concurrency": -1}),
        ("mode", {"mode": "eternal"}),
        ("backend", {"backend": "lxc"}),
        ("handler", {"handler": ""}),
        ("code", {"code": 5}),
        ("code", {"code": None}),
        ("files", {"files": {"../main.py": "x = 1"}, "code": None}),
        ("files", {"files": {"/main.py": "x = 1"}, "code": None}),
        ("files", {"files": {"main.py": "x", "main.py/x": "y"}, "code": None}),
        ("files", {"files": {"main.py": {"base64": "%%%"}}, "code": None}),
        ("env_vars", {"env_vars": {"NOVA_TENANT": "other"}}),
        ("env_vars", {"env_vars": {"A=B": "c"}}),
        ("dependency_files", {"dependency_files": {"Makefile": "all:"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:40],
)
def test_a_bad_field_is_named(platform: Platform, field: str, change: dict[str, Any]) -> None:
    """AP3: create refuses what it cannot do, by the field's name, and leaves nothing."""
    answer = platform.http.post("/functions", json=GOOD | change)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["code"] in {"validation_failed", "unknown_field", "unsupported", "runtime_unavailable"}
    named = [error["field"] for error in answer.json()["errors"]]
    assert any(name == field or name.startswith(f"{field}.") for name in named), answer.text
    assert platform.http.get(f"/functions/{NAME}").status_code == 404


@pytest.mark.parametrize("field", ["name", "runtime"])
def test_a_missing_field_is_named(platform: Platform, field: str) -> None:
    answer = platform.http.post("/functions", json={key: GOOD[key] for key in GOOD.keys() - {field}})
    assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_an_update_is_checked_as_strictly(platform: Platform) -> None:
    """AP3: a refused update leaves the function as it was."""
    before = platform.http.post("/functions", json=GOOD).json()
    for change in ({"runtime": "cobol"}, {"memory_mb": 1}, {"colour": "red"}, {"limits": {"gpus": 1}}, {"code": 5}):
        answer = platform.http.patch(f"/functions/{NAME}", json=change)
        assert answer.status_code == 400, answer.text
        assert answer.json()["errors"]
    assert platform.http.get(f"/functions/{NAME}").json() == before
    assert platform.call(NAME, "same") == "same"


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"code": "def handler(event:\n"}, "SyntaxError", "main.py"),
        ({"code": "import no_such_module\ndef handler(): pass"}, "ModuleNotFoundError", "no_such_module"),
        ({"handler": "main.elsewhere"}, "Nova.", "elsewhere"),
        ({"code": "raise RuntimeError('at import')\ndef handler(): pass"}, "RuntimeError", "at import"),
        ({"code": "import os\nos._exit(9)\ndef handler(): pass"}, "Nova.ExitError", "code 9"),
    ],
    ids=["syntax", "import", "other handler", "raises", "exits"],
)
def test_code_that_does_not_load_says_why_each_time(
    platform: Platform, change: dict[str, Any], error: str, named: str
) -> None:
    """AG20: each call ends in an error that names what is wrong; repaired, it works."""
    deployed = platform.http.post("/functions", json=GOOD | change)
    assert deployed.status_code == 201, deployed.text
    for _ in range(2):
        answer = platform.error(NAME)
        assert answer["type"].startswith(error)
        assert named in answer["message"]
    repaired = platform.http.patch(f"/functions/{NAME}", json={"code": GOOD["code"], "handler": None})
    assert repaired.status_code == 200, repaired.text
    assert platform.call(NAME, "good") == "good"


def test_code_that_never_loads_is_given_up(platform: Platform) -> None:
    """PO18: loading has its own limit, and the caller is told that it was that."""
    platform.deploy(NAME, "import time\ntime.sleep(600)\ndef handler():\n    return 1\n")
    error = platform.error(NAME)
    assert error["type"] == "Nova.InitError"
    assert "took longer" in error["message"]


def archive(*members: tuple[str, bytes], link: str | None = None) -> bytes:
    """A tar.gz with these files, and with a link ``out`` that leads to ``link``."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        if link is not None:
            entry = tarfile.TarInfo("out")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    return data.getvalue()


def bomb() -> bytes:
    """A zip of under 1 MB that unpacks to 300 MB."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        packed.writestr("main.py", GOOD["code"])
        for number in range(6):
            packed.writestr(f"zeros{number}", bytes(50 << 20))
    return data.getvalue()


MAIN = ("main.py", GOOD["code"].encode())


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"this is no archive", 415, id="no archive"),
        pytest.param(archive(MAIN)[:-20], 400, id="truncated"),
        pytest.param(archive(MAIN, ("../outside.py", b"x")), 400, id="leads out"),
        pytest.param(archive(MAIN, ("/etc/passwd", b"x")), 400, id="absolute"),
        pytest.param(archive(MAIN, link="/etc/shadow"), 400, id="link to a host file"),
        pytest.param(archive(MAIN, link="../../../etc"), 400, id="link up"),
        pytest.param(archive(("readme", b"x")), 400, id="no entry file"),
        pytest.param(bomb(), 413, id="bomb"),
    ],
)
def test_an_archive_that_is_not_harmless_is_refused(platform: Platform, content: bytes, status: int) -> None:
    """BE8: refused at upload, by name, with nothing left."""
    answer = platform.http.put(
        f"/functions/{NAME}", data={"meta": '{"runtime": "python"}'}, files={"archive": ("archive", content)}
    )
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] in {"validation_failed", "payload_too_large", "unsupported_media_type"}
    assert platform.http.get(f"/functions/{NAME}").status_code == 404


def test_a_file_name_is_only_a_name(platform: Platform) -> None:
    """BE8: quotes, semicolons, newlines and dollars in a file's name do nothing but name it."""
    odd = 'it\'s; $(touch x) `y` "z" &.txt'
    files = {"main.py": "import os\ndef handler():\n    return sorted(os.listdir('/code'))\n", odd: "x"}
    answer = platform.http.post("/functions", json={"name": NAME, "runtime": "python", "files": files})
    assert answer.status_code == 201, answer.text
    assert odd in platform.call(NAME)


def test_code_of_the_host_is_not_for_the_taking(platform: Platform) -> None:
    """SE4: code_path reads only inside the folders that the operator named."""
    for path in ("/etc", "/etc/shadow", "/proc/self/environ", "/", "/etc/../root"):
        answer = platform.http.post("/functions", json={"name": NAME, "runtime": "python", "code_path": path})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text
        assert "code_path" in answer.json()["detail"]
    assert platform.http.get(f"/functions/{NAME}").status_code == 404


def test_base64_is_decoded_strictly(platform: Platform) -> None:
    good = base64.b64encode(GOOD["code"].encode()).decode()
    for text in (good[:-1] + "!", good + "\n\n%", "=" * 8):
        answer = platform.http.post(
            "/functions", json={"name": NAME, "runtime": "python", "files": {"main.py": {"base64": text}}}
        )
        assert answer.status_code == 400, answer.text
