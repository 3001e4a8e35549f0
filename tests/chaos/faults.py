"""What goes wrong: kills with SIGKILL, processes that are stopped and go on, clocks that jump. All by seed."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.chaos import entry
from tests.chaos.stage import UP_LIMIT_S, Stage, all_up
from tests.e2e.planes import Plane
from tests.events.triggers.brokers import Mosquitto

_GAP_S = (0.5, 3.0)
_DOWN_S = (0.0, 3.0)
_STOPPED_S = (4.0, 10.0)
"""Longer than a lease: whoever wakes up finds that somebody else has its work."""
_JUMP_S = 14.0
"""of one host's clock: two of them are then less apart than identities between planes allow (30 s)"""
_JUMP_TOGETHER_S = 60.0
"""of all of them, as on one machine whose clock is set"""
EVERYONE = "everyone"
_AT_ONCE = 3
"""So many are down or coming up again at a time; on a busy machine a start takes many seconds."""
KILLED = ("nebula", "nebula-2", "comet", "comet-1", "corona", "zenith", "nova")
STOPPED = ("nebula", "nebula-2", "comet", "corona")
JUMPING = ("nebula", "nebula-2", "comet", "comet-1", "corona", "nova", "zenith")


@dataclass(frozen=True)
class Fault:
    kind: str
    victim: str

    def __str__(self) -> str:
        return f"{self.kind} {self.victim}"


ALL = (
    *(Fault("kill", name) for name in KILLED),
    *(Fault("kill", name) for name in ("postgres", "redis", "rabbitmq", "nats", "mqtt")),
    *(Fault("stop", name) for name in STOPPED),
    *(Fault("clock", name) for name in (*JUMPING, EVERYONE, EVERYONE)),
    Fault("kill", "nebula"),
    Fault("kill", "nebula-2"),
    Fault("kill", "postgres"),
)


def shuffled(chance: random.Random) -> Iterator[Fault]:
    """Each fault as often as any other, in no order; without end."""
    while True:
        yield from chance.sample(ALL, len(ALL))


class Chaos:
    """Lets faults happen until it is told to end, then heals everything. ``now`` is what happens at the moment."""

    def __init__(self, stage: Stage, chance: random.Random, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._chance = chance
        self._say = say
        self._together_s = 0.0
        self._apart_s: dict[str, float] = {}
        self.happened: Counter[str] = Counter()
        self.ended_by_themselves: list[str] = []
        self.quiet_mqtt = asyncio.Lock()
        """held while mosquitto is made to write down what it has: it acknowledges what it keeps in memory only"""

    async def run(self, until: float) -> None:
        """Faults until ``until`` (monotonic), each as soon as there is room for it; returns when the last is over."""
        faults = shuffled(self._chance)
        under_way: dict[asyncio.Task[None], Fault] = {}
        try:
            while time.monotonic() < until:
                await asyncio.sleep(self._chance.uniform(*_GAP_S))
                while len(under_way) >= _AT_ONCE:
                    await self._over(under_way, asyncio.FIRST_COMPLETED)
                fault = next(faults)
                if fault.victim not in {other.victim for other in under_way.values()}:
                    under_way[asyncio.create_task(self._happen(fault))] = fault
                    self._tell(under_way)
                await self._look_after({other.victim for other in under_way.values()})
            while under_way:
                await self._over(under_way, asyncio.ALL_COMPLETED)
        finally:
            for task in under_way:
                task.cancel()

    async def _over(self, under_way: dict["asyncio.Task[None]", Fault], when: str) -> None:
        done, _ = await asyncio.wait(under_way, return_when=when)
        for task in done:
            del under_way[task]
            task.result()
        self._tell(under_way)

    def _tell(self, under_way: dict["asyncio.Task[None]", Fault]) -> None:
        self._say(", ".join(str(fault) for fault in under_way.values()))

    async def heal(self) -> None:
        """Clocks right again, and every process up."""
        for path in self._stage.clocks.values():
            entry.jump(path, 0)
        await self._look_after(set())
        await asyncio.to_thread(all_up, self._stage.planes)

    async def _happen(self, fault: Fault) -> None:
        self.happened[str(fault)] += 1
        if fault.kind == "clock":
            self._jump(fault.victim)
        elif fault.victim == "postgres":
            await asyncio.to_thread(self._kill_database)
        elif fault.kind == "stop":
            await self._stop(self._stage.planes.planes[fault.victim])
        elif fault.victim in self._stage.brokers:
            await self._kill_broker(fault.victim)
        else:
            await self._kill(self._stage.planes.planes[fault.victim])

    def _jump(self, victim: str) -> None:
        """Half of the jumps are back to where the clock should be."""
        if victim == EVERYONE:
            self._together_s = self._chance.choice((0, self._chance.uniform(-_JUMP_TOGETHER_S, _JUMP_TOGETHER_S)))
        else:
            self._apart_s[victim] = self._chance.choice((0, self._chance.uniform(-_JUMP_S, _JUMP_S)))
        for name, path in self._stage.clocks.items():
            entry.jump(path, self._together_s + self._apart_s.get(name, 0.0))

    async def _kill(self, plane: Plane) -> None:
        await asyncio.to_thread(plane.kill)
        await asyncio.sleep(self._chance.uniform(*_DOWN_S))
        await asyncio.to_thread(plane.start)
        await self._up(plane)

    async def _up(self, plane: Plane) -> None:
        """Until it says that it is ready. One that gives up meanwhile is started again, as a service manager would."""
        deadline = time.monotonic() + UP_LIMIT_S
        while not plane.said("ready"):
            if not plane.alive:
                self.ended_by_themselves.append(f"{plane.name} while starting: {plane.tail()[-400:]}")
                await asyncio.sleep(1)
                await asyncio.to_thread(plane.start)
            assert time.monotonic() < deadline, f"{plane.name} is not up:\n{plane.tail()}"
            await asyncio.sleep(0.1)

    async def _stop(self, plane: Plane) -> None:
        plane.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._chance.uniform(*_STOPPED_S))
        finally:
            plane.send(signal.SIGCONT)

    async def _kill_broker(self, name: str) -> None:
        broker = self._stage.brokers[name]
        if isinstance(broker, Mosquitto):
            async with self.quiet_mqtt:
                await asyncio.to_thread(broker.save)
                await asyncio.to_thread(broker.kill)
        else:
            await asyncio.to_thread(broker.kill)
        await asyncio.sleep(self._chance.uniform(*_DOWN_S))
        await asyncio.to_thread(broker.start)

    def _kill_database(self) -> None:
        """It is started again by whichever plane notices."""
        database = self._stage.database
        former = database.kill()
        deadline = time.monotonic() + UP_LIMIT_S
        while True:
            try:
                if database.pid != former:
                    break
            except (FileNotFoundError, ValueError):
                pass  # its file is being written
            assert time.monotonic() < deadline, "nobody started the database again"
            time.sleep(0.1)
        self._stage.connect().close()

    async def _look_after(self, down: set[str]) -> None:
        """Start again what ended although nobody killed it."""
        for name, plane in self._stage.planes.planes.items():
            if name not in down and not plane.alive:
                self.ended_by_themselves.append(f"{plane.name}: {plane.tail()[-400:]}")
                await asyncio.to_thread(plane.start)
                await self._up(plane)
