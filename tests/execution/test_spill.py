import os
from pathlib import Path

import pytest

from nova.execution.spill import Spill

ROW = b"r" * 100


def _spill(folder: Path, *, layout: str = "one", max_bytes: int = 10_000) -> Spill:
    spill = Spill(folder, layout, max_bytes=max_bytes)
    spill.open()
    return spill


def _rows(spill: Spill) -> list[bytes]:
    return [row for segment in spill.segments() for row in spill.read(segment)]


def test_rows_come_back_in_order_and_after_a_restart(tmp_path: Path) -> None:
    spill = _spill(tmp_path)
    assert spill.put([b"a", b"b"]) == 2
    assert spill.put([b"", b"c"]) == 2
    assert _rows(_spill(tmp_path)) == [b"a", b"b", b"", b"c"]


def test_what_does_not_fit_is_refused_and_what_fits_is_kept(tmp_path: Path) -> None:
    spill = _spill(tmp_path, max_bytes=350)
    assert spill.put([ROW] * 5) == 3
    assert spill.put([ROW]) == 0
    assert _rows(spill) == [ROW] * 3


def test_room_comes_back_when_a_segment_is_done(tmp_path: Path) -> None:
    spill = _spill(tmp_path, max_bytes=350)
    spill.put([ROW] * 3)
    for segment in spill.segments():
        spill.done(segment)
    assert spill.empty
    assert spill.put([ROW]) == 1


def test_rows_put_while_segments_are_read_go_elsewhere(tmp_path: Path) -> None:
    spill = _spill(tmp_path)
    spill.put([b"old"])
    before = spill.segments()
    spill.put([b"new"])
    assert [row for segment in before for row in spill.read(segment)] == [b"old"]
    for segment in before:
        spill.done(segment)
    assert _rows(spill) == [b"new"]


def test_a_segment_cut_off_by_a_crash_is_good_up_to_its_last_whole_row(tmp_path: Path) -> None:
    spill = _spill(tmp_path)
    spill.put([b"whole", b"cut off"])
    [segment] = spill.segments()
    os.truncate(segment, segment.stat().st_size - 3)
    assert _rows(_spill(tmp_path)) == [b"whole"]


def test_rows_of_another_layout_are_counted_and_removed(tmp_path: Path) -> None:
    _spill(tmp_path, layout="old").put([b"a", b"b", b"c"])
    spill = Spill(tmp_path, "new", max_bytes=1000)
    assert spill.open() == 3
    assert spill.empty
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_refuses_rows_and_breaks_nothing(tmp_path: Path) -> None:
    spill = _spill(tmp_path)
    spill.put([b"before"])
    [kept] = spill.segments()
    (tmp_path / f"{2:010d}-one.rows").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        spill.put([ROW])
    assert spill.put([b"after"]) == 1
    assert list(spill.read(kept)) == [b"before"]
    assert b"after" in _rows(spill)
