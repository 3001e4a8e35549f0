"""A daemon for tests that kill it or run it as an ordinary user: ``daemon.py FOLDER NODE``.

Makes two templates, one loaded instance whose handler has begun to sleep and, as root, one from a snapshot; prints one
line of JSON about it, and waits.
"""

import asyncio
import json
import os
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from nova.domain.function import Limits
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.telemetry import configure_logging
from tests.execution.backends.sandbox.harness import PythonOnly, descendants, described, load, options

SOURCE = """
    import os, subprocess, sys, time

    def handler(event):
        if event == "sleep":
            subprocess.Popen(["sleep", "600"], start_new_session=True)
            print("asleep", flush=True)
            time.sleep(600)
        if event == "hoard":
            return len([bytearray(b"x" * (16 << 20)) for _ in range(640)])
        if event == "forks":
            made = []
            try:
                while len(made) < 200:
                    pid = os.fork()
                    if pid == 0:
                        time.sleep(600)
                    made.append(pid)
            except BlockingIOError:
                return len(made)
            return len(made)
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        readable = []
        for name in ("/proc/1/environ", "/proc/1/mem", "/etc/shadow"):
            try:
                open(name, "rb").read(1)
                readable.append(name)
            except OSError:
                pass
        return {"status": {key: status[key].split()[0] for key in ("Uid", "CapEff", "NoNewPrivs", "Seccomp")},
                "readable": readable}
"""


async def main(folder: Path, node: str) -> None:
    backend = SandboxBackend(options(folder, node=node, templates={("python", "3.11"): 2}), PythonOnly())
    await backend.start()
    capabilities = await backend.capabilities()
    report: dict[str, Any] = {
        "available": capabilities.available,
        "reason": capabilities.reason,
        "enforces": dict(capabilities.enforces),
        "default": backend.default_network().isolation_mode,
    }
    if capabilities.available:
        limits = Limits(memory_mb=192, pids=30)
        looking = await load(backend, folder, SOURCE, limits=limits)
        report["inside"] = await looking.value("look")
        stats = await backend.stats(looking.instance)
        report["stats"] = [stats.memory_bytes, stats.pids]
        report["forks"] = await looking.value("forks")
        hoarding = await load(backend, folder, SOURCE, limits=limits)
        outcome = await hoarding.answer("hoard")
        report["hoard"] = outcome.error.type if outcome.error else outcome.output
        await looking.stop()
        await hoarding.stop()
        sleeping = await load(backend, folder, SOURCE, limits=limits)
        task = asyncio.ensure_future(sleeping.answer("sleep", timeout_s=600))
        while len(descendants(sleeping.instance.pid)) < 2:
            await asyncio.sleep(0.01)
        if os.geteuid() == 0:
            await keep_and_restore(backend, folder)
        while any(ready < target for ready, target in backend._templates.counts().values()):
            await asyncio.sleep(0.01)
        report["pids"] = sorted(descendants(os.getpid()))
        print(json.dumps(report), flush=True)
        await task
    print(json.dumps(report), flush=True)


async def keep_and_restore(backend: SandboxBackend, folder: Path) -> None:
    """A function that is kept loaded, and an instance from it, which lives below it."""
    spec, init = described(folder, SOURCE)
    await backend.snapshot("kept", replace(spec, instance_id=uuid.uuid4().hex), init)
    instance = await backend.restore("kept", spec)
    assert instance is not None
    await instance.channel.init(init)


if __name__ == "__main__":
    configure_logging("error")
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
