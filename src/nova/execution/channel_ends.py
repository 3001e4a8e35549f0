"""Why a worker or an instance ended, in the words of the calls that it had."""

from collections.abc import Awaitable, Callable
from typing import Literal

from nova.agent.messages import LoadedHead, WorkerExitHead, end_error
from nova.errors import FunctionError

DeathCause = Literal["out_of_memory", "unknown"]


class Ends:
    """Asks the backend for what neither agent nor worker can know. ``memory_mb`` is the limit that a message names."""

    def __init__(self, death_cause: Callable[[], Awaitable[DeathCause]]) -> None:
        self._death_cause = death_cause
        self.memory_mb = 0

    async def cause(self, report: WorkerExitHead | None, reason: str) -> FunctionError:
        """``report`` is the agent's; ``reason`` is said when there is none."""
        if await self._death_cause() == "out_of_memory":
            return self._out_of_memory()
        if report is None:
            return FunctionError("Nova.InstanceLost", reason)
        ended = end_error(report.exit_code, report.signal)
        return FunctionError(ended.type, ended.message)

    async def of_load(self, loaded: LoadedHead) -> FunctionError:
        """Why a load failed."""
        guest = loaded.error
        if guest is None or (guest.type == "Nova.Signal" and await self._death_cause() == "out_of_memory"):
            return self._out_of_memory()
        return FunctionError(guest.type, guest.message, guest.stack)

    def _out_of_memory(self) -> FunctionError:
        return FunctionError("Nova.OutOfMemory", f"the function used more than its {self.memory_mb} MB of memory")
