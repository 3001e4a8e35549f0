"""Other ways to isolate a function than the sandbox: what they cost, each with what it is measured against."""

import asyncio
import os
import subprocess
from collections.abc import Collection
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING

from bench.driving import DriveError, Target
from bench.measures import Run, must_be_cold
from bench.processes import calm
from bench.stats import middle, percentile
from bench.subjects.base import SetupFailed
from bench.subjects.control import PYTHON
from bench.subjects.nova import NAME, Nova

if TYPE_CHECKING:
    from tests.backends.qemu.case import Case

PLAIN = "docker run"
KEPT = "bench"
_PLAIN_LIMIT_S = 60.0
_TEMPLATE_S = 5.0
"""How long a template may take to be there again."""


def backends(run: Run, only: Collection[str]) -> None:
    if "machine_restore" in only:
        machine_restore(run)
    if {"docker_cold", "docker_warm"} & set(only):
        docker(run, only)


def machine_restore(run: Run) -> None:
    """An emulated machine with a function loaded: booted, and gone on with from a snapshot, in turns."""
    measure = "machine_restore"
    with run.attempt(NAME, measure):
        from tests.backends.qemu.case import Case

        case = Case(templates=False)
        if reason := case.missing():
            raise SetupFailed(reason)
        booted, restored = asyncio.run(_machines(run, case))
        times = [boot / restore for boot, restore in zip(booted, restored, strict=True)]
        run.add(measure, "boot", NAME, middle(booted), "s", rounds=booted)
        run.add(measure, "restore", NAME, middle(restored), "s", rounds=restored)
        run.add(measure, "times_boot", NAME, middle(times), "×", better="higher", rounds=times)


async def _machines(run: Run, case: "Case") -> tuple[list[float], list[float]]:
    """Seconds from asking for an instance to its function being loaded: booted, restored."""
    from tests.backends.harness import Maker

    from nova.execution.backends.base import Snapshotter

    booted: list[float] = []
    restored: list[float] = []
    folder = run.folder / "machines"
    folder.mkdir(mode=0o755)
    run.folder.chmod(0o755)
    async with case.backend(folder, "bench") as backend:
        maker = Maker(case, backend, folder)
        assert isinstance(backend, Snapshotter)
        run.say("keeping a machine with a function loaded")
        await maker.keep(KEPT)
        for number in range(run.plan.machines):
            run.say(f"machines: boot and restore {number + 1}/{run.plan.machines}")
            await asyncio.to_thread(calm)
            start = perf_counter()
            function = await maker.load()
            booted.append(perf_counter() - start)
            await function.stop()
            await asyncio.to_thread(calm)
            start = perf_counter()
            spec = maker.spec()
            instance = await backend.restore(KEPT, spec)
            if instance is None:
                raise DriveError("the snapshot is gone")
            await instance.channel.init(maker.init())
            restored.append(perf_counter() - start)
            await backend.stop(instance, reason="bench")
        await backend.drop_snapshot(KEPT)
    return booted, restored


def docker(run: Run, only: Collection[str]) -> None:
    """``nova up`` beside an engine of the benchmark's own, and the engine's own client."""
    with run.attempt(NAME, "docker"), ExitStack() as stack:
        from tests import imaging
        from tests.backends.docker import ground

        if reason := ground.missing():
            raise SetupFailed(reason)
        run.say("making the image, starting the engine")
        image, engine = imaging.image("python", "tar"), ground.engine()
        settings = {"NOVA_DOCKER_HOST": f"unix://{engine.folder}/docker.sock", "NOVA_IMAGES_DIR": str(imaging.cache())}
        nova = stack.enter_context(Nova(run.command, run.folder, "docker", settings))
        nova.ready()
        warm = nova.deploy("docker-warm", PYTHON, backend="docker")
        run.caller.series(warm, 1, max_s=_PLAIN_LIMIT_S)  # the engine has the image from now on
        if "docker_cold" in only:
            docker_cold(run, nova)
            plain(run, engine.environment, f"nova-runtime-python:{image.digest[:12]}")
        if "docker_warm" in only:
            ours = _rounds(run, "docker-warm", warm)
            beside = _rounds(run, "sandbox-warm", nova.deploy("sandbox-warm", PYTHON, backend="sandbox"))
            times = [one / other for one, other in zip(ours, beside, strict=True)]
            run.add("docker_warm", "p50", NAME, middle(ours), "µs", rounds=ours)
            run.add("docker_warm", "times_sandbox", NAME, middle(times), "×", rounds=times)


def docker_cold(run: Run, nova: Nova) -> None:
    """First calls of functions that have no container, each with a template ready."""
    times = []
    for number in range(1, run.plan.docker_cold + 1):
        run.say(f"docker cold starts {number}/{run.plan.docker_cold}")
        name = f"docker-cold-{number}"
        target = nova.deploy(name, PYTHON, number=number, backend="docker")
        nova.settle()
        calm(limit_s=_TEMPLATE_S)
        answer = run.caller.series(target, 1, max_s=run.plan.cold_call_limit_s)
        must_be_cold(name, answer)
        times.append(answer.us[0] / 1000)
        nova.delete(name)
    run.add("docker_cold", "p50", NAME, percentile(times, 50), "ms", rounds=times, facts={"calls": len(times)})


def plain(run: Run, environment: dict[str, str], image: str) -> None:
    """What a container costs without us: its interpreter prints a line and ends."""
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "/usr/bin/python3",
        image,
        "-c",
        "print(1)",
    ]
    times = []
    for number in range(run.plan.docker_plain):
        run.say(f"{PLAIN} {number + 1}/{run.plan.docker_plain}")
        calm()
        start = perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_PLAIN_LIMIT_S,
            check=False,
        )
        if done.stdout != "1\n":
            raise SetupFailed(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
        times.append((perf_counter() - start) * 1000)
    run.add("docker_cold", "p50", PLAIN, middle(times), "ms", rounds=times)


def _rounds(run: Run, name: str, target: Target) -> list[float]:
    found = []
    for number in range(run.plan.crowd_rounds):
        run.say(f"{name}: one caller, round {number + 1}/{run.plan.crowd_rounds}")
        calm()
        us = run.caller.series(target, run.plan.warm_calls, skip=run.plan.warm_skip, max_s=run.plan.round_limit_s).us
        found.append(percentile(us, 50))
    return found
