"""What a build step can and cannot do, in the real sandbox. Each statement runs a program of the test's own as the step."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.execution.builds_box import BoxLimits, BuildBox, BuildFailed, Step, download_cache, scratch, tidy_cache
from nova.execution.builds_log import BuildLog
from nova.execution.registries import Access
from nova.execution.registry_proxy import Registry
from nova.runtimes.registry import Runtimes
from tests.execution.builds_support import sandbox

pytestmark = pytest.mark.anyio


class Memory:
    """Keeps a build's log in memory."""

    def __init__(self) -> None:
        self.text = ""

    async def append_log(self, _build_id: str, text: str) -> None:
        self.text += text


@pytest.fixture(scope="module")
async def backend() -> AsyncIterator[SandboxBackend]:
    async with sandbox() as backend:
        yield backend


Run = Callable[..., Awaitable[str]]


@pytest.fixture
def run(backend: SandboxBackend, tmp_path: Path) -> Run:
    """Run Python text as a build step; its output. Raises BuildFailed."""
    python = Runtimes().resolve("python").toolchain.program
    forwarder = (str(python), "-I", "-S")

    async def step(code: str, *, access: Access | None = None, limits: BoxLimits | None = None) -> str:
        memory = Memory()
        async with (
            scratch(tmp_path / "builds") as folder,
            download_cache(tmp_path / "cache", limit=1 << 30) as cache,
            BuildLog(memory, "b") as log,  # type: ignore[arg-type]
        ):
            limits = limits or BoxLimits(timeout_s=60, memory_mb=512)
            box = BuildBox(folder, cache, backend, log, limits, forwarder=forwarder)
            await box.run(Step("test", (*forwarder, "-c", code), access=access))
        return memory.text.split("\n", 1)[1]

    return step


async def test_a_step_sees_its_own_folders_only(run: Run) -> None:
    """BU1: an ordinary user without capabilities, in a root that holds nothing of the host's."""
    out = await run(
        "import os\n"
        "print(os.getuid() != 0, sorted(os.listdir('/code')), sorted(os.listdir('/scratch')), os.listdir('/cache'))\n"
        "print([p for p in ('/home', '/srv', '/etc/shadow', '/var/lib') if os.path.exists(p)])\n"
        "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])\n"
        "print(sorted(os.environ))\n"
        "for path in ('/code/a', '/scratch/tmp/b', '/cache/c'):\n"
        "    open(path, 'w').write('x')\n"
        "print(os.popen('cat /code/a').read())\n"
    )
    assert out.splitlines() == [
        "True [] ['code', 'home', 'tmp'] []",
        "[]",
        "0000000000000000",
        "['HOME', 'LANG', 'NO_COLOR', 'PATH', 'TMPDIR']",
        "x",
    ]


async def test_a_step_has_no_network(run: Run) -> None:
    """BU1: without access to registries there is the loopback of its own and nothing behind it."""
    out = await run(
        "import socket\n"
        "for address in (('192.0.2.1', 443), ('169.254.169.254', 80), ('127.0.0.1', 5432)):\n"
        "    try:\n"
        "        socket.create_connection(address, timeout=5)\n"
        "        print('reached', address)\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__)\n"
        "print([line.split(':')[0].strip() for line in open('/proc/self/net/dev').read().splitlines()[2:]])\n"
    )
    assert out.splitlines()[-1] == "['lo']"
    assert "reached" not in out


async def test_a_step_with_access_reaches_nothing_but_the_registries(run: Run, tmp_path: Path) -> None:
    """BU1: the door leads to the proxy, and the proxy refuses; the log says so."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    access = Access(frozenset({Registry("registry.test", 443)}), {"PIP_CERT": "/nova/ca.pem"}, bundle)
    out = await run(
        "import os, urllib.request\n"
        "print(os.environ['HTTPS_PROXY'].startswith('http://127.0.0.1:'), os.path.exists(os.environ['PIP_CERT']))\n"
        "for url in ('http://127.0.0.1:5432/', 'https://example.org/', 'http://169.254.169.254/latest'):\n"
        "    try:\n"
        "        print(urllib.request.urlopen(url, timeout=20).status)\n"
        "    except OSError as error:\n"
        "        print('no:', '403' in str(error))\n",
        access=access,
    )
    assert "True True" in out
    assert out.count("no: True") == 3
    assert out.count("is not one of the package registries") == 3


async def test_a_fork_bomb_ends_that_build_only(run: Run) -> None:
    """BU1: the processes of a build are counted, and its neighbour builds on."""
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    limits = BoxLimits(timeout_s=4, memory_mb=512, pids=40)
    bombed = asyncio.create_task(run(bomb, limits=limits))
    await asyncio.sleep(1)
    assert await run("print(6 * 7)") == "42\n"
    with pytest.raises(BuildFailed, match="took longer than 4 s"):
        await bombed
    assert _processes_of_builds() == []


async def test_a_memory_hog_ends_that_build_only(run: Run) -> None:
    """BU1: the limit is hard, and the failure names it."""
    with pytest.raises(BuildFailed, match="needed more than 128 MiB of memory"):
        await run("x = bytearray(1 << 30)", limits=BoxLimits(timeout_s=30, memory_mb=128))


async def test_filling_the_disk_ends_the_build(run: Run, tmp_path: Path) -> None:
    """BU1: a build that writes more than its share is stopped, and what it wrote is gone."""
    fill = (
        "import time\n"
        "for folder in ('/code', '/scratch/tmp', '/cache'):\n"
        "    with open(folder + '/big', 'wb') as file:\n"
        "        for _ in range(30):\n"
        "            file.write(bytes(1 << 20))\n"
        "time.sleep(60)\n"
    )
    limits = BoxLimits(timeout_s=50, memory_mb=512, disk_bytes=64 << 20)
    with pytest.raises(BuildFailed, match="more than 64 MiB of disk"):
        await run(fill, limits=limits)
    assert list((tmp_path / "builds").iterdir()) == []


async def test_an_endless_step_ends(run: Run) -> None:
    with pytest.raises(BuildFailed, match=r"took longer than 0\.5 s"):
        await run("import time; time.sleep(600)", limits=BoxLimits(timeout_s=0.5, memory_mb=512))


async def test_how_a_step_ended_is_said(run: Run) -> None:
    with pytest.raises(BuildFailed, match="'test' failed with exit code 3"):
        await run("raise SystemExit(3)")
    with pytest.raises(BuildFailed, match="'test' was ended by signal 9"):
        await run("import os; os.kill(os.getpid(), 9)")


async def test_a_cancelled_step_leaves_nothing(run: Run, tmp_path: Path) -> None:
    step = asyncio.create_task(run("print('here', flush=True)\nimport time; time.sleep(600)"))
    async with asyncio.timeout(20):
        while not _processes_of_builds():
            await asyncio.sleep(0.05)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert _processes_of_builds() == []
    assert list((tmp_path / "builds").iterdir()) == []


async def test_two_builds_do_not_share_a_cache_at_once(tmp_path: Path) -> None:
    async with download_cache(tmp_path, limit=1000) as one:
        async with download_cache(tmp_path, limit=1000) as two:
            assert one != two
        (one / "kept").write_bytes(b"x")
    async with download_cache(tmp_path, limit=1000) as again:
        assert again == one
        assert (again / "kept").read_bytes() == b"x"


def test_a_cache_is_cut_back_and_links_in_it_are_not_followed(tmp_path: Path) -> None:
    """BU8: the cache has a size limit."""
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    for folder in (outside, cache / "sub"):
        folder.mkdir(parents=True)
    (outside / "file").write_text("host's own")
    (outside / "file").chmod(0o600)
    outside.chmod(0o700)
    (cache / "link").symlink_to(outside / "file")
    (cache / "sub" / "folder").symlink_to(outside)
    os.link(outside / "file", cache / "hard")
    for number in range(5):
        file = cache / "sub" / str(number)
        file.write_bytes(bytes(100))
        os.utime(file, (number, number))
    tidy_cache(cache, 250)
    assert sorted(path.name for path in cache.rglob("*")) == ["3", "4", "sub"]
    assert (outside / "file").stat().st_mode & 0o777 == 0o600
    assert outside.stat().st_mode & 0o777 == 0o700


def _processes_of_builds() -> list[str]:
    """Command lines of this module's steps that live on this host."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"os.fork()\n" in command or b"print('here', flush=True)" in command:
            found.append(command.decode())
    return found
