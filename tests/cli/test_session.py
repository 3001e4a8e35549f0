"""Where orbit's global options come from, and in which order."""

from pathlib import Path

import pytest

from nova.cli.output import Format
from nova.cli.session import CliError, Options, Session

PROFILES = """
default = "home"
[profiles.home]
server = "http://home:1"
tenant = "ours"
[profiles.work]
server = "http://work:1"
api_key = "nk_work"
output = "json"
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "nova").mkdir()
    (tmp_path / "nova" / "orbit.toml").write_text(PROFILES)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_a_flag_wins_over_the_environment_and_that_over_the_profile(environ: dict[str, str]) -> None:
    assert Session(Options(), environ).server == "http://home:1"
    environ["ZENITH_URL"] = "http://env:1"
    session = Session(Options(), environ)
    assert (session.server, session.options.tenant) == ("http://env:1", "ours")
    assert Session(Options(server="http://flag:1"), environ).server == "http://flag:1"


def test_a_profile_is_chosen_by_flag_or_environment(environ: dict[str, str]) -> None:
    session = Session(Options(profile="work"), environ)
    assert (session.server, session.options.api_key, session.out.format) == ("http://work:1", "nk_work", Format.JSON)
    assert session.options.tenant is None
    environ["NOVA_PROFILE"] = "work"
    assert Session(Options(), environ).server == "http://work:1"


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    session = Session(Options(), {"XDG_CONFIG_HOME": str(tmp_path)})
    assert (session.server, session.out.format) == ("http://localhost:9000", Format.TABLE)


@pytest.mark.parametrize(
    ("content", "profile", "message"),
    [
        ("colour = 1", None, "'colour' is not known"),
        ("[profiles.a]\ncolour = 'x'", "a", "profiles.a.colour"),
        ("[profiles.a]\nserver = 1", "a", "profiles.a.server"),
        ("[profiles.a]\noutput = 'xml'", "a", "output is not one of"),
        ("[profiles.a]", "b", "no profile 'b'"),
        ("default = 'c'", None, "no profile 'c'"),
        ("a = ", None, "orbit.toml"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused(
    environ: dict[str, str], tmp_path: Path, content: str, profile: str | None, message: str
) -> None:
    (tmp_path / "nova" / "orbit.toml").write_text(content)
    with pytest.raises(CliError, match=message) as caught:
        Session(Options(profile=profile), environ)
    assert caught.value.exit_code == 2


def test_a_profile_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="profile 'x'"):
        Session(Options(profile="x"), {"XDG_CONFIG_HOME": str(tmp_path)})
