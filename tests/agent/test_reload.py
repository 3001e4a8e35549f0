"""Unpacking new code: the bounds, which no test could reach with archives of their real size."""

import io
import tarfile
from pathlib import Path

import pytest

from nova.agent import reload
from nova.agent.reload import Refused, unpack


def archive(folder: Path, *files: tuple[str, int]) -> str:
    path = folder / "code.tar"
    with tarfile.open(path, "w") as tar:
        for name, size in files:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    return str(path)


def test_up_to_the_bounds_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AG13."""
    monkeypatch.setattr(reload, "MAX_UNPACKED", 1000)
    monkeypatch.setattr(reload, "MAX_ENTRIES", 3)
    unpack(archive(tmp_path, ("a", 500), ("b", 500), ("c", 0)), str(tmp_path / "good"))
    assert sorted(path.name for path in (tmp_path / "good").iterdir()) == ["a", "b", "c"]
    for number, files in enumerate(([("a", 500), ("b", 501)], [("a", 1), ("b", 1), ("c", 1), ("d", 1)])):
        with pytest.raises(Refused) as caught:
            unpack(archive(tmp_path, *files), str(tmp_path / f"bad-{number}"))
        assert caught.value.error.type == "Nova.PayloadTooLarge"


def test_a_path_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="File exists"):
        unpack(archive(tmp_path, ("a", 1), ("a", 2)), str(tmp_path / "tree"))


@pytest.mark.parametrize("name", ["", "/a", "..", "a/..", "a/../b", "\0"])
def test_paths_that_are_refused(name: str) -> None:
    with pytest.raises(Refused):
        reload.relative(name)


def test_paths_that_are_the_same() -> None:
    assert [reload.relative(name) for name in ("a", "./a", "a/", "a//b", "..a")] == ["a", "a", "a", "a/b", "..a"]
