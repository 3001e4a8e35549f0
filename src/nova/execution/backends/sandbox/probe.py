"""Why the sandbox works, works only partly, or does not work on this host, for people to read."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.client import SOURCE_ROOT, base_interpreter
from nova.execution.backends.sandbox.kernel import MACHINE, SUPPORTED_MACHINES
from nova.execution.backends.sandbox.nftables import find_nft

OLDEST_KERNEL = (5, 12)
"""mount_setattr, the newest call that everything depends on."""
_TRIAL_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``fix`` says what to do about it and is empty when nothing is to be done.

    ``needed``: without it there is no sandbox at all; otherwise something is enforced less, as ``detail`` says.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


def diagnose() -> list[Finding]:
    """Look at everything, which takes some tenths of a second and starts processes; changes nothing."""
    return [_kernel(), _machine(), _user(), _trial(), _cgroups(), _filtering(), *_other_firewalls()]


def _kernel() -> Finding:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return Finding(
        "kernel",
        version >= OLDEST_KERNEL,
        f"Linux {platform.release()}",
        "" if version >= OLDEST_KERNEL else f"Linux {oldest} or newer is needed",
    )


def _machine() -> Finding:
    ok = MACHINE in SUPPORTED_MACHINES
    return Finding("architecture", ok, MACHINE, "" if ok else f"needed: {' or '.join(sorted(SUPPORTED_MACHINES))}")


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding("privilege", True, "running as root: limits and network rules can be hard")
    return Finding(
        "privilege",
        False,
        "running as an ordinary user: instances are offline, and limits hold per process unless control groups are"
        " delegated",
        "run as root for network access of functions and hard limits",
        needed=False,
    )


def _trial() -> Finding:
    """Really make a confined process; when that fails, look for the usual suspects."""
    try:
        done = subprocess.run(
            [base_interpreter(), "-I", "-S", str(Path(__file__).with_name("trial.py")), str(SOURCE_ROOT)],
            capture_output=True,
            text=True,
            timeout=_TRIAL_TIMEOUT_S,
            check=False,
        )
        answer = done.stdout.strip() or (done.stderr.strip().splitlines() or ["no answer"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        answer = str(error)
    if answer == "ok":
        return Finding("isolation", True, "a confined process can be made")
    return Finding("isolation", False, answer, suspects(Path("/proc/sys"), privileged=os.geteuid() == 0))


def suspects(sysctl: Path, *, privileged: bool) -> str:
    """What usually keeps a process from making namespaces, by the settings below ``sysctl``."""

    def value(name: str) -> str | None:
        try:
            return (sysctl / name).read_text().strip()
        except OSError:
            return None

    if value("user/max_user_namespaces") == "0":
        return "user namespaces are switched off: sysctl user.max_user_namespaces=15000"
    if not privileged and value("kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are switched off for ordinary users: sysctl kernel.unprivileged_userns_clone=1"
    if not privileged and value("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor keeps ordinary users from user namespaces (newer Ubuntu): "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile with 'userns,' for this Python"
        )
    return (
        "inside a container, its runtime's filter or its masked /proc is the usual cause: "
        "docker run --privileged, or --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
        "--security-opt systempaths=unconfined"
    )


def _cgroups() -> Finding:
    layout = detect_layout()
    if layout.version:
        return Finding("control groups", True, f"version {layout.version}: memory, cpu and pids limits are hard")
    return Finding(
        "control groups",
        False,
        f"{layout.reason}: memory and pids limits hold per process only, CPU time is not limited",
        "run as root, or as a systemd service with Delegate=yes",
        needed=False,
    )


def _filtering() -> Finding:
    nft = find_nft()
    if nft is None:
        return Finding(
            "network rules",
            False,
            "the nft program is missing: instances are offline",
            "install nftables (Debian, Ubuntu: apt install nftables)",
            needed=False,
        )
    done = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Finding("network rules", True, "nftables can be used: network policies are enforced", needed=False)
    reason = (done.stderr.strip().splitlines() or ["nft failed"])[0]
    return Finding(
        "network rules",
        False,
        f"{reason}: instances are offline",
        "run as root on a kernel with nf_tables",
        needed=False,
    )


def _other_firewalls() -> list[Finding]:
    """A forward chain that drops by default (Docker's, ufw's) also drops what instances send."""
    nft = shutil.which("nft")
    if nft is None or os.geteuid() != 0:
        return []
    done = subprocess.run(
        [nft, "list", "chain", "ip", "filter", "FORWARD"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or "policy drop" not in done.stdout:
        return []
    return [
        Finding(
            "other firewall",
            False,
            "the host's FORWARD chain drops by default: instances may not reach the network",
            "iptables -I FORWARD -i nvs+ -j ACCEPT; iptables -I FORWARD -o nvs+ -j ACCEPT (Docker: chain DOCKER-USER)",
            needed=False,
        )
    ]
