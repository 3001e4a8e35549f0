import pytest

from tests.backends.firecracker import programs


@pytest.fixture(scope="session")
def firecracker_here() -> None:
    """Fetches the programs when they are wanted, not when tests are collected."""
    if reason := programs.missing():
        pytest.skip(reason)
