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
from nova.config import FirecrackerSettings, Settings
from nova.errors import NovaError
from nova.execution.images import programs
from nova.execution.images.commands import PACKAGES, PATH
from nova.execution.images.kernel import VMLINUX, Kernels

_Made = TypeVar("_Made")
setup = typer.Typer(invoke_without_command=True, help="Get what machines and images need on this node.")
KERNEL = "kernel"
"""Of QEMU's machines, below the folder of images."""
_KVM = Path("/dev/kvm")
_PROGRAMS = {
    "mmdebstrap": "images",
    "mkfs.ext4": "images and drives of machines",
    "debugfs": "drives of machines",
    "qemu-system-x86_64": "the qemu backend",
}


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
def firecracker(data_dir: DataDir = None, config: Config = None) -> None:
    """Get Firecracker, its jailer and a kernel to where the settings say. What is there already is left alone."""
    settings = load_settings(config, {"daemon.data_dir": data_dir}).settings
    end(lambda: _firecracker(settings.firecracker))


def _kernel(folder: Path) -> int:
    made = _showing(lambda say: Kernels(folder).build(say))
    typer.echo(f"{made.vmlinux} ({made.version})")
    return 0


def _firecracker(wanted: FirecrackerSettings) -> int:
    version = _showing(lambda say: programs.obtain(wanted.firecracker_bin, wanted.jailer_bin, say))
    typer.echo(f"{wanted.firecracker_bin} ({version})")
    if wanted.kernel_path.exists():
        typer.echo(str(wanted.kernel_path))
        return 0
    if wanted.kernel_path.name != VMLINUX:
        text = f"firecracker.kernel_path: nothing is there; a kernel that is got has the name {VMLINUX}"
        raise NovaError("dependency_unavailable", text)
    return _kernel(wanted.kernel_path.parent)


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
    wanted = settings.firecracker
    for place in (wanted.firecracker_bin, wanted.jailer_bin):
        version = programs.version(place)
        yield _finding("machines", place.name, version, f"not at {place}", "nova setup firecracker")
    own = wanted.kernel_path if wanted.kernel_path.exists() else None
    fix = "nova setup firecracker"
    yield _finding("machines", "kernel of Firecracker", str(own) if own else None, f"not at {wanted.kernel_path}", fix)
    folder = settings.images_dir / KERNEL
    kernel = Kernels(folder).find()
    bad = f"not at {folder}"
    yield _finding("machines", "kernel of QEMU", kernel.version if kernel else None, bad, "nova setup kernel")
    engine = Path(settings.docker.host.removeprefix("unix://"))
    listens = str(engine) if settings.docker.host and engine.exists() else None
    yield _finding("containers", "Docker", listens, f"no engine at {settings.docker.host or 'docker.host'}", "")


def _images(settings: Settings) -> Iterator[Finding]:
    for row in images.described(images.images_of(settings)):
        name, current = f"{row['runtime']}, {row['form']}", row["standing"] == "current"
        command = f"nova runtime build {row['runtime']} --form {row['form']}"
        if row["standing"] != "outdated":
            yield _finding("images", name, row["path"] if current else None, "not made", command)


def _finding(part: str, name: str, good: str | None, bad: str, fix: str) -> Finding:
    standing: Standing = "ok" if good else "limited"
    return Finding(part, name, standing, good or bad, "" if good else fix)
