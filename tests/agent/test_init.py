"""The agent as the first process of a machine: a real kernel boots it, without KVM, so it takes some seconds."""

import asyncio
import hashlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova.agent import init, machine
from nova.agent.entry import BadEntry
from nova.agent.machine import Drive
from nova.execution.backends.vm import codedrive
from nova.execution.channel import DirectChannel
from nova.execution.channel_deadlines import Deadlines
from nova.execution.relay import relayed
from tests import imaging
from tests.agent.harness import TOKEN, Guest, spec_of, write_files

pytestmark = pytest.mark.anyio

BOOT_S = 120.0
CODE = """
import os, socket

def attempt(what):
    try:
        what()
    except OSError as error:
        return error.strerror
    return "done"

def write(path):
    with open(path, "w") as file:
        file.write("x")

def status():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: lines[name].strip() for name in ("Uid", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs")}

def read(path):
    with open(path) as file:
        return file.read().strip()

def handler(event, context):
    if event == "look":
        with socket.create_server(("127.0.0.1", 0)):
            pass
        places = ("/tmp", "/mnt/data", "/", "/etc", "/code", "/layers/0", "/layers", "/mnt", "/run", "/dev")
        return {
            "status": status(),
            "writes": {place: attempt(lambda: write(place.rstrip("/") + "/x")) for place in places},
            "layer": read("/layers/0/lib.txt"),
            "kill": attempt(lambda: os.kill(1, 9)),
            "disk": attempt(lambda: open("/dev/vda", "rb")),
            "console": attempt(lambda: open("/dev/console", "w")),
            "limits": [read("/sys/fs/cgroup/instance/" + name) for name in ("memory.max", "pids.max")],
            "group": read("/proc/self/cgroup"),
            "tmp": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
            "api": os.environ["NOVA_API_URL"],
        }
    if event == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(10 << 20))
    print("seen", event)
    return event
"""


def missing() -> str:
    """Why there can be no machine here; empty when there can."""
    if shutil.which("qemu-system-x86_64") is None:
        return "not installed: qemu-system-x86"
    return imaging.obstacle("ext4")


class Booted:
    """A machine with four drives: root, code, a layer, and a volume that is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killed = False
        for name, files in {"code": {"main.py": CODE}, "layer": {"lib.txt": "layer"}, "data": {"old": "1"}}.items():
            write_files(folder / name, files)
            codedrive.make_drive(folder / name, folder / f"{name}.ext4", 8)
        self._ours, theirs = socket.socketpair()
        with theirs, (folder / "console").open("wb") as console:
            self.process = subprocess.Popen(
                self._command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self.deadlines = Deadlines()
        self.channel: DirectChannel | None = None

    def _command(self, port: int) -> list[str]:
        kernel = imaging.kernel()
        words = [
            *("console=ttyS0", "quiet", "panic=-1", "reboot=t", "root=/dev/vda", "init=/opt/nova/init"),
            *("mitigations=off", "nokaslr", f"nova.token_sha256={hashlib.sha256(TOKEN).hexdigest()}"),
            *("nova.instance_id=instance-1", "nova.listen=serial:/dev/virtio-ports/nova.agent", "nova.tmp_mb=32"),
            *("nova.memory_mb=128", "nova.pids=64", "nova.mounts=vdc:/layers/0:ro,vdd:/mnt/data:rw"),
        ]
        argv = ["qemu-system-x86_64", "-machine", "q35,sata=off,smbus=off,usb=off", "-accel", "tcg", "-cpu", "max"]
        argv += ["-m", "256M", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        argv += ["-kernel", str(kernel.vmlinuz), "-initrd", str(kernel.initrd), "-append", " ".join(words)]
        argv += ["-device", "virtio-serial-pci,max_ports=2", "-chardev", f"socket,id=agent,fd={port}"]
        argv += ["-device", "virtserialport,chardev=agent,name=nova.agent"]
        drives = [imaging.image("python", "ext4").path, *(self.folder / f"{name}.ext4" for name in ("code", "layer"))]
        for number, (path, way) in enumerate(
            [*((drive, "on") for drive in drives), (self.folder / "data.ext4", "off")]
        ):
            argv += ["-blockdev", f"driver=file,filename={path},node-name=d{number},read-only={way},locking=off"]
            argv += ["-device", f"virtio-blk-pci,drive=d{number}"]
        return argv

    async def reach(self) -> Guest:
        async with asyncio.timeout(BOOT_S):
            near = await relayed(self._ours)
        self.channel = await DirectChannel.connect(
            near, TOKEN, "instance-1", kill=self.kill, death_cause=_unknown, deadlines=self.deadlines, init_timeout_s=60
        )
        return Guest(self.process, self.channel, spec_of("python"))

    def kill(self) -> None:
        """Told, not done: a machine whose worker has died still has to be able to switch itself off."""
        self.killed = True

    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.deadlines.close()
        self.process.kill()
        self.process.wait()


async def _unknown() -> Any:
    return "unknown"


@pytest.fixture
async def booted(tmp_path: Path) -> AsyncIterator[Booted]:
    if reason := missing():
        pytest.skip(reason)
    one = Booted(tmp_path)
    yield one
    one.close()
    await asyncio.sleep(0)


async def test_a_machines_life(booted: Booted, tmp_path: Path) -> None:
    """Mounts, rights and limits inside; calls of every size; an end by memory; power off, with the volume's data kept."""
    instance = await booted.reach()
    await instance.init()
    found = await instance.value("look", timeout_s=60)
    assert found["status"] == {
        "Uid": "65534\t65534\t65534\t65534",
        **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), "0" * 16),
        "NoNewPrivs": "1",
    }
    writes = found["writes"]
    assert [place for place, result in writes.items() if result == "done"] == ["/tmp", "/mnt/data"]
    assert {writes["/"], writes["/code"], writes["/layers/0"], writes["/mnt"]} == {"Read-only file system"}
    assert {writes["/run"], writes["/dev"], found["disk"], found["console"]} == {"Permission denied"}
    assert found["layer"] == "layer"
    assert found["kill"] == "Operation not permitted"
    assert found["limits"] == [str(128 << 20), "64"]
    assert found["group"] == "0::/instance"
    assert found["tmp"] == 32 << 20
    assert found["api"] == "http://127.0.0.1:8399"

    assert (await instance.call(1)).stdout == "seen 1\n"
    large = "x" * 2_000_000
    assert await instance.value(large, timeout_s=60) == large
    assert (await instance.failure("eat", timeout_s=60)).type == "Nova.Signal"
    assert booted.killed
    assert "Memory cgroup out of memory: Killed process" in booted.console()

    await instance.channel.stop(2000)
    instance.channel.close()
    assert await asyncio.to_thread(booted.process.wait, 30) == 0
    assert await output("debugfs", "-R", "cat /x", str(tmp_path / "data.ext4")) == "x"
    assert "needs_recovery" not in await output("dumpe2fs", "-h", str(tmp_path / "data.ext4"))  # it was unmounted


async def output(*argv: str) -> str:
    return (await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True)).stdout.decode()


def test_the_kernels_command_line(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("quiet reboot=k nova.listen=vsock:9999 nova.tmp_mb=64 ip=::=\n")
    words = init.command_line(str(tmp_path / "cmdline"))
    assert words == {"quiet": "", "reboot": "k", "listen": "vsock:9999", "tmp_mb": "64", "ip": "::="}


def test_the_table_of_drives() -> None:
    assert machine.drives("") == []
    assert machine.drives("vdc:/layers/0:ro,vdd:/mnt/data:rw") == [
        Drive("vdc", "/layers/0", read_only=True),
        Drive("vdd", "/mnt/data", read_only=False),
    ]


@pytest.mark.parametrize(
    "table",
    ["vdc", "vdc:/layers/0", "vdc:/layers/0:x", "vd/c:/layers/0:ro", "vdc:/etc:ro", "vdc:/mnt/..:rw", "vdc:/mnt:rw"],
)
def test_a_drive_that_cannot_be_is_named(table: str) -> None:
    with pytest.raises(BadEntry, match=f"mounts: '{table}'"):
        machine.drives(table)
