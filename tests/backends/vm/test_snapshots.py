"""Kept machines on disk: room, age, and what is found again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nova.execution.backends.vm.snapshots import UNUSED_S, KeptMachines
from tests.mock_clock import MockClock


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.fixture
def kept(tmp_path: Path, clock: MockClock) -> KeptMachines:
    return KeptMachines(tmp_path / "kept", 3, clock)


def keep(kept: KeptMachines, key: str, mb: int = 1) -> None:
    work = kept.workshop()
    (work / "memory").write_bytes(b"x" * (mb << 20))
    kept.keep(key, work, name=f"of {key}", token=b"t", fingerprint="f")


def test_what_was_used_longest_ago_makes_room(kept: KeptMachines) -> None:
    for key in ("a", "b", "c"):
        keep(kept, key)
    assert kept.find("a", "f") is not None
    keep(kept, "d")
    assert [key for key in "abcd" if kept.find(key, "f") is None] == ["b"]
    keep(kept, "large", mb=4)
    assert [key for key in ("a", "c", "d", "large") if kept.find(key, "f")] == ["large"], "the newest stays"


@pytest.mark.anyio
async def test_what_nothing_came_from_for_a_day_goes(kept: KeptMachines, clock: MockClock, tmp_path: Path) -> None:
    keep(kept, "old")
    keep(kept, "used")
    await clock.advance(UNUSED_S - 1)
    assert kept.find("used", "f") is not None
    await clock.advance(2)
    keep(kept, "new")
    assert kept.find("old", "f") is None
    assert kept.find("used", "f") is not None
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_other_makings_and_other_files_are_not_found(kept: KeptMachines, tmp_path: Path) -> None:
    """BE9."""
    keep(kept, "a")
    assert kept.find("a", "another processor") is None
    assert kept.find("a", "f") is None
    keep(kept, "a")
    (memory,) = (tmp_path / "kept").glob("*/memory")
    memory.write_bytes(b"y" * (1 << 20))
    assert kept.find("a", "f") is None
    assert list((tmp_path / "kept").iterdir()) == []


def test_many_may_come_from_them_while_others_are_kept(kept: KeptMachines) -> None:
    """Instances start in threads; what one finds is never half of what another makes."""
    keep(kept, "wanted", mb=0)
    with ThreadPoolExecutor(4) as pool:
        keeping = [pool.submit(keep, kept, f"new {number % 20}", 0) for number in range(200)]
        finding = [pool.submit(kept.find, "wanted", "f") for _ in range(500)]
        assert all(found.result() is not None for found in finding)
        for made in keeping:
            made.result()
