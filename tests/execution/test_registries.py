from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.execution.registries import CA_BUNDLE, npm_access, pip_access
from nova.execution.registry_proxy import Registry

DEFAULTS = ("https://index.test/simple", "files.test")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_without_configuration_pip_reaches_its_own_index() -> None:
    access = pip_access({}, *DEFAULTS)
    assert access.registries == {Registry("index.test", 443), Registry("files.test", 443)}
    assert access.env["PIP_CERT"] == CA_BUNDLE
    assert "PIP_INDEX_URL" not in access.env
    assert access.ca_bundle.is_file()


def test_a_configured_index_replaces_the_default_and_may_lie_inside() -> None:
    config = {
        "index-url": "http://user:pw@mirror.test:8080/simple",
        "extra-index-url": "https://b.test/s https://c.test/s",
    }
    access = pip_access(config, *DEFAULTS)
    assert access.registries == {
        Registry("files.test", 443),
        Registry("mirror.test", 8080, inside=True),
        Registry("b.test", 443, inside=True),
        Registry("c.test", 443, inside=True),
    }
    assert access.env["PIP_INDEX_URL"] == config["index-url"]


def test_folders_of_packages_are_bound_and_nothing_around_them(tmp_path: Path) -> None:
    index, files, wheels = tmp_path / "simple", tmp_path / "files", tmp_path / "wheels"
    for folder in (index / "six", files, wheels, tmp_path / "secret"):
        folder.mkdir(parents=True)
    (index / "six" / "index.html").write_text('<a href="../../files/six-1.whl#sha256=00">six</a>')
    config = {"extra-index-url": index.as_uri(), "find-links": f"{wheels} {tmp_path / 'absent'}"}
    access = pip_access(config, *DEFAULTS)
    assert set(access.paths) == {index, files, wheels}
    assert access.registries == {Registry("index.test", 443), Registry("files.test", 443)}


def test_no_index_means_no_registry() -> None:
    access = pip_access({"no-index": "true"}, *DEFAULTS)
    assert access.registries == frozenset()
    assert access.env["PIP_NO_INDEX"] == "true"


def test_the_certificates_of_the_installers_configuration_are_used(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    assert pip_access({"cert": str(bundle)}, *DEFAULTS).ca_bundle == bundle
    assert npm_access({"registry": "https://r.test/", "cafile": str(bundle)}, "").ca_bundle == bundle


def test_the_proxy_of_the_host_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.test:3128")
    access = pip_access({}, *DEFAULTS)
    assert access.upstream is not None
    assert (access.upstream.host, access.upstream.port) == ("proxy.test", 3128)
    assert "secret" not in repr(access)


def test_npm_reaches_its_registry_and_those_of_scopes() -> None:
    config = {"registry": "https://r.test/", "@us:registry": "http://10.0.0.5:4873/", "cafile": None, "fund": False}
    access = npm_access(config, "https://r.test/")
    assert access.registries == {Registry("r.test", 443), Registry("10.0.0.5", 4873, inside=True)}
    assert access.env["npm_config_@us:registry"] == "http://10.0.0.5:4873/"


def test_an_index_that_is_no_address_is_refused() -> None:
    with pytest.raises(NovaError, match="http"):
        pip_access({"index-url": "ftp://x.test/simple"}, *DEFAULTS)
