"""``nova setup``: what this node needs for machines, fetched or found."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from nova.cli import doctor, images
from nova.cli.doctor import Finding, Standing
from nova.cli.progress import Activity
from nova.cli.running import Config, DataDir, end, load_settings
from nova.config import Settings
from nova.execution.images import programs
from nova.execution.images.commands import PACKAGES, PATH
from nova.execution.images.kernel import Kernels

_Made = TypeVar("_Made")
setup = typer.Typer(invoke_without_command=True, help="Get what machines and images need on this node.")
KERNEL = "kernel"
"""Of QEMU's machines, below the folder of images."""
_KVM = Path("/dev/kvm")
_DOCKER = Path("/var/run/docker.sock")
_PROGRAMS = {
    "mmdebstrap": "images",
    "mkfs.ext4": "images and drives of machines",
    "debugfs": "drives of machines",
    "qemu-system-x86_64": "the qemu backend",
}
_BIN_DIR = Path("/opt/nova/bin")
_KERNEL_DIR = Path("/opt/nova/kernel")

BinDir = Annotated[Path, typer.Option("--bin-dir", metavar="DIR", help="Where firecracker and jailer are.")]
KernelDir = Annotated[Path, typer.Option("--kernel-dir", metavar="DIR", help="Where Firecracker's kernel is.")]


@setup.callback()
def begin(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say what is there.")] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Get what machines and images need on this node."""
    if check:
        settings = load_settings(config, {"daemon.data_dir": data_dir}).settings
        end(lambda: _check(settings))
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@setup.command()
def kernel(data_dir: DataDir = None, config: Config = None) -> None:
    """Get a kernel for QEMU's machines from Debian."""
    settings = load_settings(config, {"daemon.data_dir": data_dir}).settings
    end(lambda: _kernel(settings.images_dir / KERNEL))


@setup.command()
def firecracker(bin_dir: BinDir = _BIN_DIR, kernel_dir: KernelDir = _KERNEL_DIR) -> None:
    """Get Firecracker, its jailer and a kernel for its machines. What is there already is left alone."""
    end(lambda: _firecracker(bin_dir, kernel_dir))


def _kernel(folder: Path) -> int:
    made = _showing(lambda say: Kernels(folder).build(say))
    typer.echo(f"{made.vmlinux} ({made.version})")
    return 0


def _firecracker(bin_dir: Path, kernel_dir: Path) -> int:
    version = _showing(lambda say: programs.obtain(bin_dir, say))
    typer.echo(f"{bin_dir / programs.NAMES[0]} ({version})")
    return _kernel(kernel_dir)


def _showing(work: Callable[[Callable[[str], None]], _Made]) -> _Made:
    with Activity(Console(stderr=True, highlight=False)) as activity:
        return work(activity.step)


def _check(settings: Settings) -> int:
    found = [*_programs(), *_machines(settings), *_images(settings)]
    Console(highlight=False).print(doctor.table(found))
    return 0


def _programs() -> Iterator[Finding]:
    for name, use in _PROGRAMS.items():
        place = shutil.which(name, path=PATH)
        package = {"debugfs": "e2fsprogs", "qemu-system-x86_64": "qemu-system-x86"}.get(name) or PACKAGES[name]
        yield _finding("programs", name, place, f"not installed; for {use}", f"apt-get install {package}")


def _machines(settings: Settings) -> Iterator[Finding]:
    usable = os.access(_KVM, os.R_OK | os.W_OK)
    yield _finding(
        "machines", "KVM", str(_KVM) if usable else None, "not usable: QEMU emulates, Firecracker cannot run", ""
    )
    for name in programs.NAMES:
        version = programs.version(_BIN_DIR / name)
        yield _finding("machines", name, version, f"not at {_BIN_DIR}", "nova setup firecracker")
    for name, folder in (("kernel of QEMU", settings.images_dir / KERNEL), ("kernel of Firecracker", _KERNEL_DIR)):
        kernel = Kernels(folder).find()
        command = "nova setup kernel" if name == "kernel of QEMU" else "nova setup firecracker"
        yield _finding("machines", name, kernel.version if kernel else None, f"not at {folder}", command)
    engine = str(_DOCKER) if _DOCKER.exists() else None
    yield _finding("containers", "Docker", engine, f"nothing listens at {_DOCKER}", "")


def _images(settings: Settings) -> Iterator[Finding]:
    for row in images.described(images.images_of(settings)):
        name, current = f"{row['runtime']}, {row['form']}", row["standing"] == "current"
        command = f"nova runtime build {row['runtime']} --form {row['form']}"
        if row["standing"] != "outdated":
            yield _finding("images", name, row["path"] if current else None, "not made", command)


def _finding(part: str, name: str, good: str | None, bad: str, fix: str) -> Finding:
    standing: Standing = "ok" if good else "limited"
    return Finding(part, name, standing, good or bad, "" if good else fix)
