"""What code inside an instance can and cannot do, tried from inside."""

import os
import signal
import textwrap
from pathlib import Path

import pytest

from nova.execution.backends.sandbox.backend import SandboxBackend
from tests.execution.backends.sandbox import harness
from tests.execution.backends.sandbox.harness import ROOMY, load

pytestmark = [pytest.mark.anyio, pytest.mark.root]


@pytest.fixture(autouse=True, params=["loaded", "restored"])
def origin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds in an instance that loads its function and in one that came from a snapshot."""
    monkeypatch.setattr(harness, "FROM_SNAPSHOT", request.param == "restored")


ATTEMPT = """
    import ctypes, errno, os, socket
    libc = ctypes.CDLL(None, use_errno=True)

    def attempt(work):
        try:
            work()
        except OSError as error:
            return errno.errorcode[error.errno]
        return "ok"

    def syscall(number, *args):
        def work():
            if libc.syscall(number, *args) < 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        return attempt(work)
"""


async def test_privileges_are_gone(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE5: not root, no capability, no new privileges, a filter, and no set-user-id gain."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os
        def handler():
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            wanted = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
            suid = [line for line in open("/proc/mounts") if "nosuid" not in line.split()[3].split(",")]
            return {"status": {name: status[name].split() for name in wanted}, "suid": suid}
        """,
    )
    seen = await function.value()
    none = ["0000000000000000"]
    assert set(seen["status"].pop("Groups")) <= {"65534"}
    assert seen["status"] == {
        "Uid": ["65534"] * 4,
        "Gid": ["65534"] * 4,
        "CapInh": none,
        "CapPrm": none,
        "CapEff": none,
        "CapBnd": none,
        "CapAmb": none,
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],
    }
    assert seen["suid"] == []
    host = Path(f"/proc/{function.instance.pid}/status").read_text()
    uids = next(line.split()[1:] for line in host.splitlines() if line.startswith("Uid:"))
    assert all(200_000 < int(uid) < 300_000 for uid in uids), "an unprivileged user of the instance's own outside"
    await function.stop()


async def test_forbidden_system_calls(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE5: mount, ptrace, bpf and their kin fail with EPERM, whatever their arguments."""
    function = await load(
        sandbox,
        tmp_path,
        ATTEMPT
        + """
    def handler():
        return {
            "mount": syscall(165, 0, b"/tmp", b"tmpfs", 0, 0),
            "umount2": syscall(166, b"/tmp", 2),
            "pivot_root": syscall(155, b"/", b"/tmp"),
            "chroot": syscall(161, b"/tmp"),
            "ptrace": syscall(101, 16, 1, 0, 0),
            "bpf": syscall(321, 0, 0, 0),
            "unshare": syscall(272, 0x10000000),
            "setns": syscall(308, 0, 0),
            "clone_newuser": syscall(56, 0x10000000 | 17, 0, 0, 0, 0),
            "clone3": syscall(435, 0, 0),
            "keyctl": syscall(250, 0, 0),
            "add_key": syscall(248, 0, 0),
            "userfaultfd": syscall(323, 0),
            "perf_event_open": syscall(298, 0, 0, -1, -1, 0),
            "init_module": syscall(175, 0, 0, b""),
            "kexec_load": syscall(246, 0, 0, 0, 0),
            "open_by_handle_at": syscall(304, -1, 0, 0),
            "swapon": syscall(167, b"/tmp/x", 0),
            "reboot": syscall(169, 0, 0, 0, 0),
            "io_uring_setup": syscall(425, 1, 0),
            "process_vm_readv": syscall(310, 1, 0, 0, 0, 0, 0),
            "process_vm_writev": syscall(311, 1, 0, 0, 0, 0, 0),
            "pidfd_getfd": syscall(438, 0, 0, 0),
            "mount_setattr": syscall(442, -100, b"/", 0, 0, 0),
            "setdomainname": syscall(171, b"x", 1),
            "unknown_call": syscall(1023),
        }
""",
    )
    seen = await function.value()
    assert seen.pop("clone3") == "ENOSYS", "libraries then fall back to clone"
    assert seen.pop("unknown_call") == "ENOSYS"
    assert seen == dict.fromkeys(seen, "EPERM")
    await function.stop()


async def test_socket_families(sandbox: SandboxBackend, tmp_path: Path) -> None:
    function = await load(
        sandbox,
        tmp_path,
        ATTEMPT
        + """
    def handler():
        families = {"unix": (1, 1), "inet": (2, 1), "inet6": (10, 1), "netlink": (16, 3), "packet": (17, 3),
                    "vsock": (40, 1), "alg": (38, 5), "raw": (2, 3, 1)}
        return {name: attempt(lambda: socket.socket(*kind).close()) for name, kind in families.items()}
""",
    )
    seen = await function.value()
    assert {seen[name] for name in ("unix", "inet", "inet6")} == {"ok"}
    assert {seen[name] for name in ("netlink", "packet", "vsock", "alg")} == {"EAFNOSUPPORT"}
    assert seen["raw"] == "EPERM"
    await function.stop()


async def test_foreign_architecture_kills(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """A system call with the x32 bit ends the process instead of slipping past the numbers of the filter."""
    function = await load(
        sandbox,
        tmp_path,
        ATTEMPT
        + """
    def handler():
        pid = os.fork()
        if pid == 0:
            syscall(0x40000000 | 39)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""",
    )
    assert await function.value() == -31, "SIGSYS"
    await function.stop()


async def test_only_tmp_is_writable(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE5: no place outside /tmp can be written, /proc included."""
    function = await load(
        sandbox,
        tmp_path,
        ATTEMPT
        + """
    def write(path):
        def work():
            with open(path, "w") as file:
                file.write("x")
        return attempt(work)

    def handler():
        paths = ["/x", "/code/x", "/code/main.py", "/usr/x", "/etc/passwd", "/etc/x", "/dev/x", "/run/x", "/var/x",
                 "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger"]
        return {"denied": {path: write(path) for path in paths}, "tmp": write("/tmp/x"), "shm": write("/dev/shm/y"),
                "chmod": attempt(lambda: os.chmod("/code", 0o777)), "mknod": attempt(lambda: os.mknod("/tmp/d", 0o60666, 0x100))}
""",
    )
    seen = await function.value()
    assert "ok" not in {result for path, result in seen["denied"].items() if path != "/proc/sysrq-trigger"}
    # /dev/null stands there: writing does nothing.
    assert seen["denied"]["/proc/sysrq-trigger"] in ("ok", "EACCES", "ENOENT")
    assert seen["tmp"] == seen["shm"] == "ok"
    assert seen["chmod"] in ("EROFS", "EPERM")
    assert seen["mknod"] == "EPERM"
    await function.stop()


async def test_the_host_is_not_visible(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """Nothing of the host's private files, processes or the platform's own code is in reach."""
    (tmp_path / "secret").write_text("host secret")
    function = await load(
        sandbox,
        tmp_path,
        f"""
        import os, socket
        def handler():
            gone = ["/etc/shadow", "/etc/hostname.real", "/root", "/home", "/var/lib", "/var/log", "/sys", "/boot",
                    "/opt", "/srv", "/work", {str(tmp_path)!r}]
            return {{
                "there": [path for path in gone if os.path.exists(path)],
                "root": sorted(os.listdir("/")),
                "mounts": os.listdir("/mnt") + [path for n in os.listdir("/layers") for path in os.listdir("/layers/" + n)],
                "dev": sorted(os.listdir("/dev")),
                "processes": sorted(int(name) - os.getpid() for name in os.listdir("/proc") if name.isdigit()),
                "hostname": socket.gethostname(),
                "passwd": open("/etc/passwd").read().splitlines(),
            }}
        """,
    )
    seen = await function.value()
    assert seen["there"] == seen["mounts"] == []
    assert {"tmp", "proc", "dev", "usr", "code", "etc"} <= set(seen["root"])
    assert set(seen["root"]) <= {
        "bin", "code", "dev", "etc", "layers", "lib", "lib32", "lib64", "libx32", "mnt", "proc", "run", "sbin", "tmp",
        "usr", "var",
    }  # fmt: skip
    assert seen["dev"] == [
        "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
    ]  # fmt: skip
    assert seen["processes"] == [0], "the worker sees itself alone, not even the agent"
    assert seen["hostname"] == "nova"
    assert len(seen["passwd"]) == 2
    await function.stop()


async def test_the_agent_is_closed_to_the_worker(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """The first process runs as the same user and still shows nothing of itself."""
    function = await load(
        sandbox,
        tmp_path,
        ATTEMPT
        + """
    def handler():
        return {name: attempt(lambda: open(f"/proc/1/{name}", "rb").read(1)) for name in
                ["environ", "mem", "maps", "cmdline", "fd/3", "root", "cwd"]}
""",
    )
    seen = await function.value()
    assert "ok" not in seen.values()
    await function.stop()


async def test_killing_harms_only_oneself(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """kill(1) is ignored by the kernel, kill(-1) finds nobody else; a neighbour goes on."""
    neighbour = await load(sandbox, tmp_path, "def handler():\n    return 'alive'")
    function = await load(
        sandbox,
        tmp_path,
        """
        import os, signal
        def handler(event):
            os.kill(event, signal.SIGKILL if event == 1 else signal.SIGTERM)
            return "still here"
        """,
    )
    assert await function.value(1) == "still here"
    result = await function.answer(-1)
    assert result.error is not None
    assert result.error.type == "ProcessLookupError"
    assert await neighbour.value() == "alive"
    await function.stop()
    await neighbour.stop()


async def test_instances_do_not_see_each_other(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """PO1: another function's code, /tmp and abstract sockets are out of reach, and one's own code is one's own."""
    source = """
        import os, socket
        held = []
        def handler(event):
            if event == "hide":
                open("/tmp/mine", "w").write("mine")
                door = socket.socket(socket.AF_UNIX)
                door.bind("\\0nova-test")
                door.listen()
                held.append(door)
                return sorted(os.listdir("/code"))
            knock = socket.socket(socket.AF_UNIX)
            return {"tmp": os.listdir("/tmp"), "socket": knock.connect_ex("\\0nova-test"),
                    "code": open("/code/main.py").read()}
    """
    first = await load(sandbox, tmp_path, source)
    second = await load(sandbox, tmp_path, textwrap.dedent(source) + "\n# the other\n")
    assert await first.value("hide") == ["main.py"]
    seen = await second.value("look")
    assert seen["tmp"] == []
    assert seen["socket"] != 0
    assert "# the other" in seen["code"]
    assert first.instance.uid != second.instance.uid
    await first.stop()
    await second.stop()


async def test_environment_and_descriptors(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """AG23: the environment holds the contract's names and the function's own; no descriptor but the contract's is open."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os
        def handler():
            links = {}
            for name in os.listdir("/proc/self/fd"):
                try:
                    links[name] = os.readlink(f"/proc/self/fd/{name}").split(":")[0]
                except FileNotFoundError:
                    pass
            return {"env": dict(os.environ), "fds": links}
        """,
        env={"MINE": "yes"},
    )
    seen = await function.value()
    allowed = ("NOVA_", "AWS_LAMBDA_", "LAMBDA_TASK_ROOT", "_HANDLER", "TRACE")
    plain = {"PATH", "HOME", "TMPDIR", "LANG", "TZ", "PYTHONPATH", "NODE_PATH", "LD_LIBRARY_PATH", "MINE"}
    strangers = [name for name in seen["env"] if name not in plain and not name.startswith(allowed)]
    assert strangers == []
    assert seen["env"]["MINE"] == "yes"
    assert not any(os.environ.get("PATH") == value for value in seen["env"].values())
    assert seen["fds"] == {"0": "/dev/null", "1": "pipe", "2": "pipe", "3": "socket", "4": "socket"}
    await function.stop()


async def test_a_function_may_look_at_itself(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """Tools that measure memory or print stacks read a process's own files; those of process 1 stay closed."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os
        def handler():
            for name in ("pagemap", "maps", "environ"):
                with open(f"/proc/self/{name}", "rb") as file:
                    file.read(8)
            return os.path.exists("/proc/1/status")
        """,
    )
    assert await function.value() is False
    await function.stop()


async def test_time_out_leaves_no_descendant(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """AG10: a handler that forked twice, left its session and ignores SIGTERM is gone once its call has timed out."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os, signal, time
        def handler():
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if os.fork() == 0:
                    print("hiding", flush=True)
                time.sleep(600)
            time.sleep(600)
        """,
    )
    pidfd = os.pidfd_open(function.instance.pid)
    result = await function.answer(timeout_s=0.5)
    assert result.error is not None
    assert result.error.type == "Nova.Timeout"
    await function.stop()
    with pytest.raises(ProcessLookupError):
        # The first process is dead and buried, which the kernel does only after every other process of its namespace.
        signal.pidfd_send_signal(pidfd, 0)
    os.close(pidfd)


async def test_each_instance_has_its_own_limits_in_force(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """PO14: an instance has the limits that were asked for, and no core dumps."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os, resource
        def handler():
            stat = os.statvfs("/tmp")
            return {"core": resource.getrlimit(resource.RLIMIT_CORE), "tmp": stat.f_blocks * stat.f_frsize,
                    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1]}
        """,
        limits=ROOMY,
    )
    seen = await function.value()
    assert seen == {"core": [0, 0], "tmp": 64 << 20, "files": 1024}
    await function.stop()
