"""Two comets and one of every other plane, for the tests that kill, stop and restart them."""

from collections.abc import Iterator

import pytest

from tests.e2e.misuse import Platform, platform_at
from tests.e2e.planes import SixPlanes

SETTINGS = {"queue": {"lease": "2s"}, "daemon": {"drain_s": 20}}


@pytest.fixture(scope="package")
def shared_planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SixPlanes]:
    with SixPlanes(tmp_path_factory.mktemp("apart") / "data", comets=2, settings=SETTINGS) as planes:
        yield planes


@pytest.fixture
def planes(shared_planes: SixPlanes) -> SixPlanes:
    """All of them up and well, whatever the test before did."""
    shared_planes.heal()
    return shared_planes


@pytest.fixture
def platform(planes: SixPlanes) -> Iterator[Platform]:
    with platform_at(planes.url) as platform:
        yield platform
