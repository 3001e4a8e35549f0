"""The folder that an image is made from: Debian packages unpacked and trimmed, then the agent and the runtime."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nova.errors import NovaError
from nova.execution.images.commands import as_root, missing, run
from nova.execution.images.recipe import HOME, LIBRARY, Recipe

_DEBSTRAP_S: Final = 900.0
_TOOL_S: Final = 300.0
_USELESS: Final = (
    *(
        "usr/share/" + name
        for name in ("doc", "man", "locale", "info", "lintian", "bash-completion", "debconf", "perl5")
    ),
    *("usr/share/" + name for name in ("gcc", "menu", "common-licenses", "pixmaps", "bug", "zoneinfo/right")),
    *("usr/lib/" + name for name in ("apt", "dpkg", "systemd", "locale/C.utf8/LC_COLLATE")),
    *(
        "usr/lib/python3.*/" + name
        for name in ("test", "unittest/test", "idlelib", "lib2to3", "turtledemo", "pydoc_data")
    ),
    "usr/lib/*-linux-gnu/gconv",
    *("usr/bin/" + name for name in ("dpkg*", "deb*", "apt*", "perl*", "update-alternatives")),
    *("usr/sbin/" + name for name in ("dpkg*", "deb*", "update-ca-certificates", "ldconfig*")),
    *(
        "etc/" + name
        for name in ("apt", "dpkg", "init.d", "cron.*", "logrotate.d", "update-motd.d", "systemd", "debconf.conf")
    ),
    *(
        "var/cache/*",
        "var/lib/*",
        "var/log/*",
        "var/local",
        "var/lock",
        "boot",
        "home/*",
        "root/*",
        "run/*",
        "tmp/*",
        "dev/*",
    ),
)
"""Patterns of what nobody in an image asks for: the package manager, documents, other languages' texts."""
_MERGED_USR: Final = 'for name in bin lib lib64 sbin; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done'
_FOLDERS: Final = {
    "code": 0o755,
    "layers": 0o755,
    "mnt": 0o755,
    "run/nova": 0o755,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "proc": 0o555,
}
_FOLDERS_MADE_BY_KERNEL: Final = ("sys", "dev")
_USERS: Final = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUPS: Final = "root:x:0:\nnogroup:x:65534:\n"
_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"
_PASSED_ON: Final = 'import sys\nsys.path.insert(0, "{library}")\nfrom nova.agent.{module} import main\nmain()\n'
_SHEBANG: Final = "#!/usr/bin/python3 -IS\n"
_ENTRIES: Final = ("boot", "init")
"""Modules of the agent that start it: in a container, and as the first process of a machine."""

Say = Callable[[str], None]


def make_stem(folder: Path, packages: tuple[str, ...], suite: str, say: Say) -> None:
    """Unpack ``packages`` of ``suite`` and what they depend on into ``folder``, trimmed, with Python compiled.

    No script of a package is run, so no root is needed and every host makes the same. Packages come from where this host
    takes its own, if it is of that suite. Raises NovaError ``dependency_unavailable``.
    """
    say(f"unpacking {len(packages)} packages of {suite} and their dependencies")
    unpack_packages(folder, packages, suite)
    say("trimming it and compiling its Python")
    _trim(folder)
    _furnish(folder)
    _compile(folder, folder / "usr/lib")


def unpack_packages(folder: Path, packages: tuple[str, ...], suite: str) -> None:
    """As they are, with what they depend on. Raises NovaError ``dependency_unavailable``."""
    if needed := missing("mmdebstrap", "unshare", "tar"):
        raise NovaError("dependency_unavailable", f"not installed here: apt-get install {' '.join(needed)}")
    tar = folder.with_name(f"{folder.name}.mmdebstrap.tar")
    run(*_mmdebstrap(packages, suite, tar), timeout_s=_DEBSTRAP_S)
    unpack(tar, folder)
    tar.unlink()


def _mmdebstrap(packages: tuple[str, ...], suite: str, tar: Path) -> list[str]:
    options = ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
    return [
        *("mmdebstrap", "--quiet", "--variant=extract", "--format=tar"),
        f"--mode={'root' if os.geteuid() == 0 else 'chrootless'}",
        f"--setup-hook={_MERGED_USR}",
        *options,
        f"--include={','.join(packages)}",
        *(suite, str(tar)),
        *_mirrors(suite),
    ]


def _mirrors(suite: str) -> list[str]:
    """The file in which this host says where Debian is, when it is of the same suite."""
    release = Path("/etc/os-release").read_text()
    if f"VERSION_CODENAME={suite}" in release:
        for name in ("sources.list.d/debian.sources", "sources.list"):
            file = Path("/etc/apt") / name
            if file.exists() and file.stat().st_size:
                return [str(file)]
    return []


def unpack(tar: Path, folder: Path) -> None:
    """Every file belongs to whoever unpacks; devices are left out, the kernel makes its own."""
    folder.mkdir(parents=True)
    run("tar", "-xf", str(tar), "-C", str(folder), "--no-same-owner", "-p", "--exclude=./dev/*", timeout_s=_TOOL_S)


def _trim(folder: Path) -> None:
    for pattern in _USELESS:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in folder.rglob("*"):
        if not path.is_symlink() and (mode := path.lstat().st_mode) & (stat.S_ISUID | stat.S_ISGID):
            path.chmod(stat.S_IMODE(mode) & 0o777)


def _furnish(folder: Path) -> None:
    """What the scripts of packages would have made, and nothing of this host."""
    for name, mode in _FOLDERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(mode)
    for name in _FOLDERS_MADE_BY_KERNEL:
        (folder / name).mkdir(exist_ok=True)
    texts = {"passwd": _USERS, "group": _GROUPS, "hosts": _HOSTS, "resolv.conf": "", "hostname": "instance\n"}
    for name, text in texts.items():
        path = folder / "etc" / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    with contextlib.suppress(FileNotFoundError):
        (folder / "etc/shadow").unlink()
    certificates = sorted((folder / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = folder / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes(b"".join(path.read_bytes().strip() + b"\n" for path in certificates))


def _compile(folder: Path, part: Path) -> None:
    """By the image's own Python. The root is read-only where it runs: what is not compiled now is compiled at every start."""
    inside = f"/{part.relative_to(folder)}"
    argv = ["/usr/bin/python3", "-IS", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", inside]
    run(*as_root("chroot", str(folder), *argv), timeout_s=_TOOL_S)


def add_runtime(folder: Path, recipe: Recipe, say: Say) -> str:
    """Put agent, runtime and toolchain into an unpacked stem. Returns the version of the language that is inside.

    Raises NovaError ``runtime_unavailable`` when the host's toolchain does not run there.
    """
    say("adding the agent and the runtime")
    library = folder / LIBRARY.relative_to("/")
    for name, path in recipe.sources():
        target = library / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    home = folder / HOME.relative_to("/")
    for module in _ENTRIES:
        entry = home / module
        entry.write_text(_SHEBANG + _PASSED_ON.format(library=LIBRARY, module=module))
        entry.chmod(0o755)
    version = _add_tool(folder, recipe)
    described = {"runtime": recipe.resolved.runtime, "version": version, "worker": recipe.launch().as_dict()}
    (home / "agent.json").write_text(json.dumps(described, indent=1))
    _compile(folder, library)
    return version


def _add_tool(folder: Path, recipe: Recipe) -> str:
    """The version, like ``3.11``; empty for runtimes that bring everything themselves."""
    section, program = recipe.section, recipe.resolved.toolchain.program
    if not section.tool:
        return ""
    if section.copied and program is not None:
        target = folder / section.tool.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(program, target)
        target.chmod(0o755)
    try:
        said = run(*as_root("chroot", str(folder), section.tool, "--version"), timeout_s=_TOOL_S)
    except NovaError as error:
        text = f"{program} does not run in an image of {recipe.suite}: {error.detail}"
        raise NovaError("runtime_unavailable", text) from None
    return ".".join(said.split()[-1].removeprefix("v").split(".")[:2])
