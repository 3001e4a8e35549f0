"""How many calls WebAssembly workers answer, each in a store of its own: a worker for each core, fed through its line."""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import perf_counter

from bench.driving import DriveError
from bench.measures import Run
from bench.stats import middle
from bench.subjects.nova import NAME
from nova.execution.launch import launch_for
from nova.runtimes.registry import Runtimes

_FUNCTIONS = Path(__file__).parent / "functions"
MODULES = {"reactor": "echo_reactor.wat", "command": "echo_command.wat"}
"""By metric. Both answer with their input."""
_AHEAD = 64
"""Calls on their way to one worker: the driver is not to be waited for."""
_WARM_CALLS = 500
_INPUT = b'{"name": "nova", "numbers": [1, 2, 3]}'
_FAR_MS = 4_102_444_800_000
_CALL = b'{"input": %b, "context": {"request_id": "%%08d", "deadline_ms": %d}}\n' % (_INPUT, _FAR_MS)
_ANSWER_BYTES = len(b'{"request_id": "%08d", "output": %b}\n' % (0, _INPUT))


def wasm(run: Run, only: Collection[str]) -> None:
    if "wasm_rate" in only:
        with run.attempt(NAME, "wasm_rate"):
            for metric, file in MODULES.items():
                rate(run, metric, _FUNCTIONS / file)


def rate(run: Run, metric: str, module: Path) -> None:
    """Answers per second of all workers together."""
    count = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(dir=run.folder) as folder, _workers(Path(folder), module, count) as workers:
        _drive(workers, count * _WARM_CALLS)
        rounds = []
        for number in range(run.plan.crowd_rounds):
            run.say(f"{metric} modules in {count} workers, round {number + 1}/{run.plan.crowd_rounds}")
            began = perf_counter()
            _drive(workers, run.plan.wasm_calls)
            rounds.append(run.plan.wasm_calls / (perf_counter() - began))
    facts = {"workers": float(count), "calls": float(run.plan.wasm_calls)}
    run.add("wasm_rate", metric, NAME, middle(rounds), "calls/s", better="higher", rounds=rounds, facts=facts)


@dataclass(eq=False)
class _Worker:
    line: socket.socket
    sent: int = 0
    heard: int = 0
    """bytes of answers"""


@contextmanager
def _workers(folder: Path, module: Path, count: int) -> Iterator[list[_Worker]]:
    """Loaded; they end with their line."""
    argv = launch_for(Runtimes().resolve("wasm")).argv
    (folder / "handler.wasm").write_bytes(module.read_bytes())
    init = {
        "handler": "handler.handle",
        "entry": str(folder / "handler.wasm"),
        "code_dir": str(folder),
        "concurrency": 1,
        "env": {"NOVA_MEMORY_LIMIT_MB": "128"},
    }
    made, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            made.append(_Worker(ours))
            script = f'exec "$@" 3<&{theirs.fileno()} 4>&{theirs.fileno()}'
            processes.append(subprocess.Popen(["bash", "-c", script, "bash", *argv], pass_fds=[theirs.fileno()]))
            theirs.close()
            ours.sendall(json.dumps({"init": init}).encode() + b"\n")
            ready = ours.recv(4096)
            if b'"ready"' not in ready:
                raise DriveError(f"a worker does not load the module: {ready!r}")
        yield made
    finally:
        for worker in made:
            worker.line.close()
        for process in processes:
            process.wait()


def _drive(workers: list[_Worker], calls: int) -> None:
    """Keep every worker busy until ``calls`` are answered, whoever answers them."""
    begun = answered = 0
    with DefaultSelector() as selector:
        for worker in workers:
            worker.sent = worker.heard = 0
            selector.register(worker.line, EVENT_READ, worker)
        while answered < calls:
            for worker in workers:
                more = min(_AHEAD - (worker.sent - worker.heard // _ANSWER_BYTES), calls - begun)
                if more >= _AHEAD // 2 or 0 < more == calls - begun:
                    worker.line.sendall(b"".join(_CALL % number for number in range(begun, begun + more)))
                    worker.sent += more
                    begun += more
            for key, _ in selector.select(10):
                worker = key.data
                data = worker.line.recv(1 << 16)
                if not data or b"error" in data:
                    raise DriveError(f"a worker answered {data[:200]!r}")
                worker.heard += len(data)
            answered = sum(worker.heard // _ANSWER_BYTES for worker in workers)
