"""Listening addresses and when they are refused."""

import pytest

from nova.errors import NovaError
from nova.listen import Address, listening_socket, parse


def test_an_address_without_a_host_is_every_interface_when_callers_must_prove_themselves() -> None:
    assert parse(":9000", open_access=False) == Address("", 9000)


def test_an_address_without_a_host_is_loopback_with_a_warning_when_access_is_open() -> None:
    address = parse(":9000", open_access=True)
    assert (address.host, address.port) == ("127.0.0.1", 9000)
    assert address.warning


@pytest.mark.parametrize("text", ["0.0.0.0:9000", "192.0.2.1:80", "[::]:9000", "example.org:1"])
def test_open_access_beyond_loopback_is_refused_unless_insecure(text: str) -> None:
    with pytest.raises(NovaError, match="--insecure"):
        parse(text, open_access=True)
    assert parse(text, open_access=True, insecure=True).warning is None


@pytest.mark.parametrize("text", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_open_access_on_loopback_is_fine(text: str) -> None:
    assert parse(text, open_access=True).port == 1


@pytest.mark.parametrize("text", ["9000", "x:y", "::1:80", ":70000", ""])
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(NovaError):
        parse(text, open_access=False)


def test_a_taken_port_is_named() -> None:
    first = listening_socket(Address("127.0.0.1", 0))
    port = first.getsockname()[1]
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        listening_socket(Address("127.0.0.1", port))
    first.close()
