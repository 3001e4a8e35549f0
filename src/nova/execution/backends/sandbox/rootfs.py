"""What an instance's root holds on this host: system directories, the toolchain of a runtime, devices and a small /etc."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from nova.domain.layer import MAX_LAYERS
from nova.execution.backends.base import Bind
from nova.execution.backends.sandbox.mounts import BindKind, RootPlan
from nova.execution.inside import inside

LAYERS = tuple(f"/layers/{number}" for number in range(MAX_LAYERS))
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ETC_PUBLIC = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/mime.types",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
_FALLBACK_RESOLVERS = ("1.1.1.1", "8.8.8.8")

_PASSWD = "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
_HOSTS = "127.0.0.1 localhost nova\n::1 localhost nova\n"


def plan_root(
    name: str, tools: Iterable[Path], *, resolvers: Sequence[str] | None, binds: Iterable[Bind] = ()
) -> RootPlan:
    """A root with the system's ``/usr``, the host paths ``tools`` where :func:`inside` says, and ``binds``.

    ``resolvers`` None: no name resolution (offline).
    """
    binds = list(binds)
    system, links = _system()
    files = [
        ("/etc/passwd", _PASSWD),
        ("/etc/group", _GROUP),
        ("/etc/nsswitch.conf", _NSSWITCH),
        ("/etc/hosts", _HOSTS),
        ("/etc/hostname", "nova\n"),
        ("/etc/os-release", _os_release()),
    ]
    if resolvers is not None:
        text = "".join(f"nameserver {address}\n" for address in resolvers)
        files.append(("/etc/resolv.conf", text + "options timeout:2 attempts:2\n"))
    links += [("/dev/fd", "/proc/self/fd"), ("/dev/shm", "/tmp"), ("/var/tmp", "/tmp")]
    links += [(f"/dev/{stream}", f"/proc/self/fd/{fd}") for fd, stream in enumerate(("stdin", "stdout", "stderr"))]
    mounts: list[tuple[str, str, BindKind]] = [(path, path, "ro") for path in system]
    mounts += [(str(path), inside(path), "ro") for path in _outside(tools, system)]
    mounts += [(path, path, "ro") for path in _ETC_PUBLIC if os.path.exists(path)]
    mounts += [(f"/dev/{device}", f"/dev/{device}", "dev") for device in _DEVICES]
    mounts += [(str(bind.source), bind.target, "ro" if bind.read_only else "rw") for bind in binds]
    return RootPlan(
        name=name,
        directories=("/proc", "/tmp", "/code", "/mnt", *LAYERS, "/run", "/var", "/dev", "/etc/ssl"),
        links=tuple(links),
        files=tuple(files),
        binds=tuple(mounts),
    )


def interpreter_paths() -> list[Path]:
    """What the Python that runs the platform needs to see of the host, at its own place."""
    return [Path(sys.base_prefix).resolve()]


def _system() -> tuple[list[str], list[tuple[str, str]]]:
    """/usr, and the top-level directories beside it: links on a merged system, else bound as well."""
    directories, links = ["/usr"], []
    for name in _MERGED:
        path = f"/{name}"
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            directories.append(path)
    return directories, links


def _outside(tools: Iterable[Path], system: Sequence[str]) -> list[Path]:
    """The paths that no system directory and no other tool path covers yet."""
    chosen: list[Path] = []
    for path in sorted(set(tools)):
        if not any(path.is_relative_to(parent) for parent in (*map(Path, system), *chosen)):
            chosen.append(path)
    return chosen


def _os_release() -> str:
    try:
        return Path("/etc/os-release").read_text()
    except OSError:
        return 'NAME="Linux"\nID=linux\n'


def usable_resolvers(resolv_conf: str) -> list[str]:
    """Name servers that an instance can reach: not on the host's loopback, not link-local; else public ones."""
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and ":" not in words[1]:
            found.append(words[1])
    usable = [address for address in found if not address.startswith(("127.", "169.254.", "0."))]
    return usable[:3] or list(_FALLBACK_RESOLVERS)


def host_resolvers() -> list[str]:
    """The host's own name servers, those behind a local stub included."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        try:
            return usable_resolvers(Path(path).read_text())
        except OSError:
            continue
    return list(_FALLBACK_RESOLVERS)
