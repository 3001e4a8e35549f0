import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.domain.tree import EXECUTABLE, FILE, LINK
from nova.execution.builds_tree import TreeRefused, lay_out, pack_folder

pytestmark = pytest.mark.anyio


async def pieces() -> AsyncIterator[tuple[str, int, int, bytes]]:
    yield "a/b/c.py", FILE, 0, b"one"
    yield "a/b/c.py", FILE, 1, b"two"
    yield "a/run", EXECUTABLE, 0, b"#!/bin/sh"
    yield "empty", FILE, 0, b""
    yield "link", LINK, 0, b"a/run"


async def test_sources_are_laid_out_as_they_are(tmp_path: Path) -> None:
    await lay_out(tmp_path, pieces())
    assert (tmp_path / "a/b/c.py").read_bytes() == b"onetwo"
    assert (tmp_path / "empty").read_bytes() == b""
    assert os.access(tmp_path / "a/run", os.X_OK)
    assert os.readlink(tmp_path / "link") == "a/run"


def packed(folder: Path, limit: int = 1 << 20) -> bytes:
    out = io.BytesIO()
    pack_folder(folder, "a/run", out, limit=limit)
    return out.getvalue()


async def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    """BU6: neither times, owners nor the order of creation count; one byte does."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        await lay_out(folder, pieces())
    (one / "z").write_text("z")
    (one / "y").write_text("y")
    (two / "y").write_text("y")
    (two / "z").write_text("z")
    os.utime(two / "z", (1, 1))
    (two / "y").chmod(0o640)
    assert packed(one) == packed(two)
    with tarfile.open(fileobj=io.BytesIO(packed(one))) as tar:
        assert [member.name for member in tar] == [
            "a",
            "a/b",
            "a/b/c.py",
            "a/run",
            "empty",
            "link",
            "y",
            "z",
            "handler",
        ]
        assert tar.getmember("handler").linkname == "a/run"
    (two / "y").write_text("x")
    assert packed(one) != packed(two)


async def test_a_file_of_the_users_named_handler_stays(tmp_path: Path) -> None:
    (tmp_path / "handler").write_text("mine")
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path))) as tar:
        (member,) = tar.getmembers()
    assert member.isreg()


async def test_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    with pytest.raises(TreeRefused, match="over 1 MiB"):
        packed(tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "a/../../secret"])
async def test_links_that_lead_out_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(TreeRefused, match="leads out"):
        packed(tmp_path)


async def test_pipes_and_the_like_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TreeRefused, match="neither a file"):
        packed(tmp_path)
