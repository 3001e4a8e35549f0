"""Folders on disk: what is read, what is packed, what is refused by name."""

import io
import stat
import zipfile
from pathlib import Path

import pytest

from nova.cli.project import Project
from nova.cli.session import CliError


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def names(project: Project) -> list[str]:
    return [path for path, _ in project.files()]


def test_the_folder_names_the_function_and_the_file_wins(tmp_path: Path) -> None:
    folder = write(tmp_path / "hello", {"main.py": "x = 1\n"})
    assert Project.read(folder, runtime="python").name == "hello"
    write(folder, {"function.yaml": "name: other\nruntime: python\nmemory_mb: 256\n"})
    found = Project.read(folder)
    assert (found.name, found.settings) == ("other", {"runtime": "python", "memory_mb": 256})
    assert Project.read(folder, name="third", runtime="node").settings["runtime"] == "node"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("runtime: python\nmemory: 5", "'memory' is not known"),
        ("runtime: python\ncode: x", "'code' does not belong there"),
        ("runtime: python\ncode_path: /etc", "'code_path' does not belong there"),
        ("name: a b\nruntime: python", "'a b' cannot be a function's name"),
        ("name: [1]\nruntime: python", "cannot be a function's name"),
        ("name: a", "which runtime"),
        ("- a", "fields are expected"),
        ("a: [", "function.yaml"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused_by_name(tmp_path: Path, manifest: str, message: str) -> None:
    folder = write(tmp_path / "f", {"function.yaml": manifest, "main.py": ""})
    with pytest.raises(CliError, match=message) as caught:
        Project.read(folder)
    assert caught.value.exit_code == 2


def test_what_tools_leave_behind_is_not_code(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "f",
        {
            "main.py": "",
            "lib/util.py": "",
            "function.yaml": "runtime: python",
            ".novaignore": "*.log\n/data/\n!keep.log\n",
            "a.log": "",
            "keep.log": "",
            "data/big.bin": "",
            "lib/data/small.bin": "",
            ".git/config": "",
            "node_modules/x/index.js": "",
            "__pycache__/main.cpython-311.pyc": "",
            ".venv/bin/python": "",
        },
    )
    assert names(Project.read(folder)) == ["keep.log", "lib/data/small.bin", "lib/util.py", "main.py"]


def test_the_archive_keeps_modes_and_links_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"bootstrap": "#!/bin/sh\n", "main.py": ""})
    (folder / "bootstrap").chmod(0o700)
    (folder / "link.py").symlink_to("main.py")
    project = Project.read(folder, runtime="custom")
    first = project.archive()
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        assert archive.read("link.py") == b"main.py"
    assert modes == {
        "bootstrap": stat.S_IFREG | 0o755,
        "link.py": stat.S_IFLNK | 0o777,
        "main.py": stat.S_IFREG | 0o644,
    }
    (folder / "main.py").touch()
    assert Project.read(folder, runtime="custom").archive() == first


def test_a_folder_without_code_cannot_be_deployed(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"function.yaml": "runtime: python"})
    with pytest.raises(CliError, match="no code"):
        Project.read(folder).archive()
    with pytest.raises(CliError, match="not a folder"):
        Project.read(tmp_path / "missing")


def test_saving_a_file_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"main.py": "a", "ignored.pyc": "", "function.yaml": "runtime: python"})
    project = Project.read(folder)
    before = project.fingerprint()
    write(folder, {"ignored.pyc": "more"})
    assert project.fingerprint() == before
    write(folder, {"main.py": "ab"})
    after = project.fingerprint()
    assert after != before
    write(folder, {"function.yaml": "runtime: python\nmemory_mb: 256"})
    assert project.fingerprint() != after
