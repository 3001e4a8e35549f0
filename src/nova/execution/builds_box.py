"""The place of one build: a folder of its own on the host, an isolated command runner, and the limits of both."""

import asyncio
import fcntl
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.function import Limits
from nova.execution import buildbox
from nova.execution.artifacts import remove
from nova.execution.backends.base import Bind, CommandResult, CommandRunner, CommandSpec
from nova.execution.builds_log import BuildLog
from nova.execution.builds_tree import disk_usage
from nova.execution.registries import CA_BUNDLE, Access
from nova.execution.registry_proxy import RegistryProxy

_WATCH_S = 1.0
_FORWARD = Path(buildbox.__path__[0])


class BuildFailed(Exception):
    """The build has no result; the message is for its owner."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a build, as the sandbox sees it. Without ``access`` it has no network at all.

    ``required`` False: its failure is no failure of the build. ``hints``: what to add to a failure, by words of its output.
    """

    title: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    access: Access | None = None
    required: bool = True
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """Of one build: seconds for all its steps, memory of a step, bytes on disk (code, dependencies and scratch)."""

    timeout_s: float
    memory_mb: int
    disk_bytes: int = 2 << 30
    pids: int = 512
    tmp_mb: int = 256
    open_files: int = 4096

    @property
    def of_step(self) -> Limits:
        vcpus = float(min(2, os.cpu_count() or 1))
        return Limits(self.memory_mb, vcpus, self.pids, self.tmp_mb, self.open_files)


class BuildBox:
    """``code`` is what becomes the artifact: ``/code`` inside, and also ``/scratch/code``, so that installers can move files
    there from their temporary folder instead of copying them. ``/cache`` is the download cache.

    The user that a build runs as differs from build to build, so what it must write is open to all users; the folder
    around it is not.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        runner: CommandRunner,
        log: BuildLog,
        limits: BoxLimits,
        *,
        forwarder: tuple[str, ...],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.code = folder / "code"
        self._folder = folder
        self._cache = cache
        self._runner = runner
        self._log = log
        self._limits = limits
        self._forwarder = forwarder
        self._clock = clock
        self._ends = clock.monotonic() + limits.timeout_s
        folder.chmod(0o777)
        for path in (self.code, folder / "home", folder / "tmp"):
            path.mkdir()
            path.chmod(0o777)

    async def run(self, step: Step) -> None:
        """Run one step to its end. Raises :class:`BuildFailed`."""
        self._log.say(step.title)
        async with self._door(step.access) as door:
            env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "NO_COLOR": "1"}
            env |= {
                "HOME": "/scratch/home",
                "TMPDIR": "/scratch/tmp",
                **(step.access.env if step.access else {}),
                **step.env,
            }
            command = CommandSpec(
                argv=(*door.prefix, *step.argv),
                env=env,
                cwd="/code",
                binds=tuple(dict.fromkeys((*self._own_binds(), *door.binds, *step.binds))),
                limits=self._limits.of_step,
                timeout_s=max(0.001, self._ends - self._clock.monotonic()),
                output=self._log.write,
            )
            result = await self._watched(command)
        if step.required and (problem := self._problem(step, result)):
            raise BuildFailed(problem)

    def _own_binds(self) -> Iterator[Bind]:
        yield Bind(self.code, "/code", read_only=False)
        yield Bind(self._folder, "/scratch", read_only=False)
        yield Bind(self._cache, "/cache", read_only=False)

    @asynccontextmanager
    async def _door(self, access: Access | None) -> AsyncIterator["_Door"]:
        """The way to the registries, while a step needs it."""
        if access is None:
            yield _Door()
            return
        binds = [Bind(access.ca_bundle, CA_BUNDLE), *(Bind(path, str(path)) for path in access.paths)]
        if not access.registries:
            yield _Door((), tuple(binds))
            return
        proxy = RegistryProxy(access.registries, upstream=access.upstream, refused=self._log.say)
        # the path of a unix socket has 107 bytes at most: not below the data directory
        with tempfile.TemporaryDirectory(prefix="nova-build-") as private:
            place = Path(private, "door")
            place.mkdir()
            place.chmod(0o755)
            async with proxy.serve(place / "s"):
                binds += [Bind(place, "/nova/door"), Bind(_FORWARD, "/nova/forward")]
                yield _Door((*self._forwarder, "/nova/forward/forward.py", "/nova/door/s"), tuple(binds))

    async def _watched(self, command: CommandSpec) -> CommandResult:
        """Run, and stop it when it fills the disk."""
        run = asyncio.create_task(self._runner.run(command), name="build.step")
        before = await asyncio.to_thread(disk_usage, self._cache)
        try:
            while True:
                done, _ = await asyncio.wait({run}, timeout=_WATCH_S)
                if done:
                    return run.result()
                used = await asyncio.to_thread(lambda: disk_usage(self._folder) + disk_usage(self._cache) - before)
                if used > self._limits.disk_bytes:
                    raise BuildFailed(f"the build used more than {self._limits.disk_bytes >> 20} MiB of disk")
        finally:
            run.cancel()
            await asyncio.wait({run})

    def _problem(self, step: Step, result: CommandResult) -> str:
        if result.timed_out:
            return f"the build took longer than {self._limits.timeout_s:g} s"
        if result.out_of_memory:
            return f"{step.title!r} needed more than {self._limits.memory_mb} MiB of memory"
        if result.exit_code is None:
            return f"{step.title!r} was ended by signal {result.signal}"
        if result.exit_code != 0:
            hints = [hint for words, hint in step.hints.items() if words in self._log.tail]
            return "; ".join([f"{step.title!r} failed with exit code {result.exit_code}", *hints])
        return ""


@dataclass(frozen=True, slots=True)
class _Door:
    """``prefix`` goes before a step's command."""

    prefix: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()


@asynccontextmanager
async def scratch(parent: Path) -> AsyncIterator[Path]:
    """A fresh private folder that is gone afterwards, whatever modes a build left in it."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        await asyncio.to_thread(remove, folder)


@asynccontextmanager
async def download_cache(parent: Path, *, limit: int) -> AsyncIterator[Path]:
    """One of the download caches below ``parent``, used by nobody else meanwhile, cut back to ``limit`` bytes afterwards."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = parent / str(_lock_first_free(parent, stack))
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        try:
            yield folder
        finally:
            await asyncio.to_thread(tidy_cache, folder, limit)


def _lock_first_free(parent: Path, stack: ExitStack) -> int:
    number = 0
    while True:
        lock = stack.enter_context((parent / f"{number}.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number += 1
        else:
            return number


def tidy_cache(folder: Path, limit: int) -> None:
    """Remove the least recently used files beyond ``limit`` bytes, and open the rest to the next build's user.

    Links are removed, never followed: this runs with the daemon's rights on what a build has written.
    """
    files: list[tuple[float, int, str]] = []
    for where, folders, names in os.walk(folder):
        for path in (os.path.join(where, name) for name in (*folders, *names)):
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                os.chmod(path, 0o777)
            elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                os.chmod(path, 0o666)
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
            else:
                os.unlink(path)
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        os.unlink(path)
        total -= size
