"""From a runtime of this host to what an agent is told about starting its workers."""

from nova.agent.config import WorkerLaunch
from nova.runtimes.registry import Resolved


def launch_for(resolved: Resolved) -> WorkerLaunch:
    """Absolute paths in place of ``{tool}`` and ``{bootstrap}``; ``{entry}`` and ``{input}`` are the agent's to fill."""
    worker = resolved.manifest.worker
    known = {"{tool}": str(resolved.toolchain.program), "{bootstrap}": str(resolved.bootstrap)}

    def fill(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known.get(word, word) for word in words)

    return WorkerLaunch(
        kind=worker.kind, module=worker.module, argv=fill(worker.argv), script=fill(resolved.manifest.script)
    )
