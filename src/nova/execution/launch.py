"""From a runtime of this host to what an agent is told about starting its workers."""

from nova.agent.config import WorkerLaunch
from nova.runtimes.registry import Resolved


def launch_for(resolved: Resolved, *, fuel: int = 0) -> WorkerLaunch:
    """Absolute paths in place of ``{tool}``, ``{bootstrap}`` and ``{package}``, and the ``{version}`` of what was found;
    ``{fuel}`` is what a call may use up where that is counted. ``{entry}`` and ``{input}`` are the agent's to fill."""
    worker = resolved.manifest.worker
    known = {
        "{tool}": str(resolved.toolchain.program),
        "{bootstrap}": str(resolved.bootstrap),
        "{package}": str(resolved.toolchain.package),
        "{version}": resolved.toolchain.version,
        "{fuel}": str(fuel),
    }

    def fill(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known.get(word, word) for word in words)

    return WorkerLaunch(
        kind=worker.kind, module=worker.module, argv=fill(worker.argv), script=fill(resolved.manifest.script)
    )
