"""The function that the conformance suite deploys on every backend. ``{"do": name, ...}`` picks what it does.

It runs inside instances, on whatever Python the image has, and never sees this repository.
"""

# mypy: ignore-errors
import ctypes
import errno
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

MB = 1 << 20
LOADED = os.urandom(8).hex()
"""Made when the code is loaded: instances of one snapshot share it."""


def attempt(work):
    """What stopped it, or ``done``."""
    try:
        work()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except (MemoryError, RuntimeError, ValueError) as error:
        return type(error).__name__
    return "done"


def syscall(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)

    def work():
        if libc.syscall(number, *args) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return attempt(work)


# -- a function like any other ---------------------------------------------------------------------------------------


def do_echo(event):
    print("said", event["value"])
    print("warned", file=sys.stderr)
    return event["value"]


def do_raise(event):
    raise LookupError(event["value"])


def do_env(event):
    return os.environ.get(event["name"])


def do_loaded(event):
    return [LOADED, os.urandom(8).hex()]


def do_exit(event):
    os._exit(event["code"])


def do_sleep(event):
    time.sleep(event["s"])


def do_spin(event):
    while True:
        pass


def do_stream(event):
    def pieces():
        for number in range(event["pieces"]):
            yield f"piece {number}"
            time.sleep(event.get("pause", 0))

    return pieces()


def do_orphan(event):
    """A grandchild that lost its parent."""
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.waitpid(pid, 0)


# -- more than it may ------------------------------------------------------------------------------------------------


def do_hoard(event):
    return len([bytearray(b"x" * MB) for _ in range(event["mb"])])


def do_processes(event):
    made = []
    try:
        while len(made) < event["most"]:
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
            made.append(pid)
    except OSError as error:
        return [len(made), errno.errorcode[error.errno]]
    finally:
        for pid in made:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return [len(made), "done"]


def do_disk(event):
    written = 0
    try:
        with open("/tmp/big", "wb", buffering=0) as file:
            while written < event["most"] * MB:
                written += file.write(bytes(MB))
    except OSError as error:
        return [written // MB, errno.errorcode[error.errno]]
    finally:
        os.unlink("/tmp/big")
    return [written // MB, "done"]


def write(path):
    def work():
        with open(path, "w") as file:
            file.write("x")

    return attempt(work)


def read(path):
    def work():
        with open(path, "rb") as file:
            file.read(1)

    return attempt(work)


def connect(host, port):
    return attempt(lambda: socket.create_connection((host, port), 0.5).close())


def do_attack(event):
    """What stops an attacker, by what it tried."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return {
        "be root": "done" if os.getuid() == 0 else f"uid {os.getuid()}",
        "become root (setuid)": attempt(lambda: os.setuid(0)),
        "use a capability": "has none" if not int(status["CapEff"], 16) else "done",
        "gain from a set-user-id program": "no_new_privs" if int(status["NoNewPrivs"]) else "done",
        "mount a file system": syscall(165, 0, b"/tmp", b"tmpfs", 0, 0),
        "leave the root directory (chroot)": syscall(161, b"/tmp"),
        "trace a process (ptrace)": syscall(101, 16, 1, 0, 0),
        "load a program into the kernel (bpf)": syscall(321, 0, 0, 0),
        "load a kernel module": syscall(175, 0, 0, b""),
        "make a user namespace": syscall(272, 0x10000000),
        "read the memory of process 1": read("/proc/1/mem"),
        "read the environment of process 1": read("/proc/1/environ"),
        "read the host's memory": read("/dev/mem"),
        "read passwords (/etc/shadow)": read("/etc/shadow"),
        "write its own code": write("/code/main.py"),
        "write system files": write("/etc/passwd"),
        "write programs": write("/usr/bin/python3"),
        "change the kernel's settings": write("/proc/sys/kernel/hostname"),
        "make a device": attempt(lambda: os.mknod("/tmp/device", 0o60666, 0x100)),
        "open a raw socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
        "listen to the network (packet socket)": attempt(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
        ),
        "talk to the hypervisor (vsock)": attempt(lambda: _vsock()),
        "reach the engine's socket": attempt(lambda: _unix("/var/run/docker.sock")),
        "reach the host's metadata service": connect("169.254.169.254", 80),
        "reach the internet without a network": connect("192.0.2.1", 80),
        "reboot": syscall(169, 0, 0, 0, 0),
    }


def _vsock():
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.5)
        sock.connect((2, 1024))


def _unix(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def do_reach(event):
    """Which targets give an answer."""

    def probe(target):
        host, port = target
        try:
            with socket.create_connection((host, port), event.get("timeout", 0.6)) as sock:
                sock.settimeout(5)
                return sock.recv(16) != b""
        except OSError:
            return False

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(probe, event["targets"]))


def do_threads(event):
    made = 0
    try:
        while made < event["most"]:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            made += 1
    except RuntimeError:
        return [made, "refused"]
    return [made, "done"]


def do_files(event):
    """Of a mounted folder: what is read in it, and what comes of writing."""
    path = event["path"]
    found = {}
    for name in sorted(os.listdir(path)):
        if name != "lost+found":
            with open(f"{path}/{name}") as file:
                found[name] = file.read()
    return [found, write(f"{path}/{event['write']}")]


def handler(event):
    return globals()[f"do_{event['do']}"](event)
