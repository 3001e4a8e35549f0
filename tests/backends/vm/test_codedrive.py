"""Drives made of folders: what a machine will read is what the folder held, whatever the names are."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.execution.backends.vm.codedrive import make_drive


def read(image: Path, path: str) -> bytes:
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", image], capture_output=True, check=True).stdout


def test_a_drive_holds_the_folder_and_is_whole(tmp_path: Path) -> None:
    folder, image = tmp_path / "code", tmp_path / "code.ext4"
    (folder / "package" / "empty").mkdir(parents=True)
    (folder / "main.py").write_text("def handler(event): ...\n")
    (folder / "package" / "data.bin").write_bytes(os.urandom(300_000))
    (folder / "link").symlink_to("main.py")
    assert make_drive(folder, image, 16) == 16
    assert read(image, "/main.py") == b"def handler(event): ...\n"
    assert read(image, "/package/data.bin") == (folder / "package" / "data.bin").read_bytes()
    subprocess.run(["/sbin/e2fsck", "-fn", image], capture_output=True, check=True)
    assert image.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code", "code.ext4"]


@pytest.mark.parametrize(
    "name", ["two\nlines", 'quo"te', "semi;colon rm -rf", "'single'", "$(touch x)", "-F", "ü\udcff"]
)
def test_a_file_name_is_only_data(tmp_path: Path, name: str) -> None:
    """BE8."""
    folder, image = tmp_path / "code", tmp_path / "code.ext4"
    folder.mkdir()
    (folder / name).write_text("content")
    make_drive(folder, image, 4)
    assert os.listdir(tmp_path / "code") == [name]
    assert os.fsencode(name) in image.read_bytes()


def test_a_drive_grows_with_its_content_and_has_a_limit(tmp_path: Path) -> None:
    folder, image = tmp_path / "code", tmp_path / "code.ext4"
    folder.mkdir()
    for number in range(600):
        (folder / f"module_{number}.py").write_text(f"x = {number}\n")
    with (folder / "large").open("wb") as large:
        large.truncate(10 << 20)
    assert 14 <= make_drive(folder, image, 4) <= 24
    with (folder / "large").open("wb") as large:
        large.truncate(600 << 20)
    with pytest.raises(NovaError, match="at most 512 MB"):
        make_drive(folder, tmp_path / "other.ext4", 4)
    assert not (tmp_path / "other.ext4").exists()


def test_what_cannot_be_in_a_drive_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        with pytest.raises(NovaError, match="'s' is neither a file"):
            make_drive(folder, tmp_path / "code.ext4", 4)
    os.unlink(folder / "s")
    os.mkfifo(folder / "pipe")
    with pytest.raises(NovaError, match="pipe"):
        make_drive(folder, tmp_path / "code.ext4", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
