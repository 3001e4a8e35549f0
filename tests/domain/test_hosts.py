import pytest

from nova.domain.hosts import host_pattern


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("*.example.org", "*.example.org"),
        ("_mongodb._tcp.example.org", "_mongodb._tcp.example.org"),
        ("straße.example", "xn--strae-oqa.example"),
        ("database", "database"),
        ("3com.example", "3com.example"),
    ],
)
def test_names_have_one_form(given: str, kept: str) -> None:
    assert host_pattern(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        *("", "*", "*.", "*.org", "a.*.org", "a*.example.org", "a..b", ".a", "-a.org", "a-.org", "a b.org", "a\n.org"),
        *("1.2.3", "0x7f.1", "127.0.0.0x1", "a/b", "http://example.org", "example.org:80", "b\u2024org"),
        *("x" * 64 + ".org", ".".join(["abcdefgh"] * 30)),
    ],
)
def test_what_is_no_name_is_refused(given: str) -> None:
    """Above all whatever a program could take for an address that the rules do not see."""
    with pytest.raises(ValueError):
        host_pattern(given)
