"""A Docker engine through its HTTP API: what this backend asks of it, and its two ways of failing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError

REQUEST_S: Final = 60.0
"""How long the engine may take for one answer."""
_CONNECT_S: Final = 5.0
_PIECE: Final = 1 << 20
_NOT_REACHED: Final = 900
"""What the client says in place of an HTTP status when nobody answers."""
_MISSING, _CONFLICT, _UNCHANGED = 404, 409, 304


class EngineLost(Exception):
    """The engine does not answer; the message says how that looks."""


class EngineRefused(Exception):
    """The engine answered, and did not do it; the message is the engine's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Event:
    """What the engine tells of a container: ``die`` with its exit code, or ``oom``."""

    action: str
    container: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """A container that is there."""

    container: str
    name: str
    labels: Mapping[str, str]


class Engine:
    """One engine at ``address`` (``unix:///var/run/docker.sock``, ``tcp://127.0.0.1:2375``).

    Every method raises :class:`EngineLost` or :class:`EngineRefused`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: aiodocker.Docker | None = None

    async def open(self) -> dict[str, Any]:
        """Connect; returns what the engine says of itself (``GET /info``)."""
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=REQUEST_S, connect=_CONNECT_S)
            with _troubles():
                self._client = aiodocker.Docker(url=self.address, timeout=timeout)
        with _troubles():
            await self._client.version()
            return dict(await self._client.system.info())

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    @property
    def _opened(self) -> aiodocker.Docker:
        if self._client is None:
            raise EngineLost(f"there is no connection to {self.address}")
        return self._client

    # -- containers ----------------------------------------------------------------------------------------------

    async def create(self, name: str, configuration: dict[str, Any]) -> str:
        """The id of a new container that does not run yet."""
        with _troubles():
            return (await self._opened.containers.create(configuration, name=name)).id

    async def start(self, container: str) -> None:
        with _troubles():
            await self._opened.containers.container(container).start()

    async def kill(self, container: str) -> None:
        """One that has ended, or is gone, is no error."""
        with _troubles(_MISSING, _CONFLICT):
            await self._opened.containers.container(container).kill()

    async def remove(self, container: str) -> None:
        """Kill it and forget all that belongs to it; one that is gone, or going, is no error."""
        with _troubles(_MISSING, _CONFLICT):
            await self._opened.containers.container(container).delete(force=True, v=True)

    async def inspect(self, container: str) -> dict[str, Any]:
        with _troubles():
            return await self._opened.containers.container(container).show()

    async def last_words(self, container: str) -> str:
        """The end of what its first process has printed."""
        with _troubles():
            lines = await self._opened.containers.container(container).log(stdout=True, stderr=True, tail=5)
        return " ".join(line.strip() for line in lines)[-500:]

    async def containers(self, *labels: str) -> list[Found]:
        """Those that have all of these labels (``name=value``), also the ones that have ended."""
        with _troubles():
            found = await self._opened.containers.list(all=True, filters=json.dumps({"label": labels}))
        return [Found(item.id, item["Names"][0].lstrip("/"), item["Labels"]) for item in found]

    async def events(self, label: str, since: str) -> AsyncIterator[Event]:
        """What happens to containers with that label from the engine's time ``since`` on, until the engine is lost."""
        events = self._opened.events
        filters = {"type": ["container"], "label": [label], "event": ["die", "oom"]}
        subscriber = events.subscribe(create_task=False)  # type: ignore[no-untyped-call]
        reading = asyncio.ensure_future(events.run(timeout=None, filters=json.dumps(filters), since=since))
        try:
            while (event := await subscriber.get()) is not None:
                yield _event(event)
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, DockerError, aiohttp.ClientError, OSError, ValueError):
                await reading

    async def ensure_network(self, configuration: dict[str, Any]) -> None:
        """Make a network; one of that name is left as it is."""
        with _troubles(_CONFLICT):
            await self._opened.networks.create(configuration)

    # -- images --------------------------------------------------------------------------------------------------

    async def has_image(self, tag: str) -> bool:
        try:
            with _troubles():
                await self._opened.images.inspect(tag)
        except EngineRefused as refused:
            if refused.status == _MISSING:
                return False
            raise
        return True

    async def import_image(self, tar: Path, tag: str, labels: Mapping[str, str]) -> None:
        """Make an image of one layer from a root folder's tar."""
        repository, _, version = tag.rpartition(":")
        changes = [f"LABEL {name}={json.dumps(value)}" for name, value in labels.items()]
        client = self._opened
        with _troubles():
            # The client has no call for it; the session knows how to reach the engine.
            async with client.session.post(
                f"{client.docker_host}/{client.api_version}/images/create",
                params=[
                    ("fromSrc", "-"),
                    ("repo", repository),
                    ("tag", version),
                    *(("changes", change) for change in changes),
                ],
                data=_pieces(tar),
                headers={"Content-Type": "application/x-tar"},
                timeout=aiohttp.ClientTimeout(sock_read=REQUEST_S * 5),
            ) as answer:
                said = await answer.text()
        if answer.status >= 400 or '"error"' in said:
            raise EngineRefused(answer.status, f"the image {tag} was not imported: {said.strip()[-300:]}")


def _event(told: Mapping[str, Any]) -> Event:
    actor = told["Actor"]
    code = actor["Attributes"].get("exitCode")
    return Event(told["Action"], actor["ID"], int(code) if code is not None else None)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


@contextlib.contextmanager
def _troubles(*harmless: int) -> Iterator[None]:
    """The client's troubles in our words; answers with a ``harmless`` status are none."""
    try:
        yield
    except DockerError as error:
        if error.status in (*harmless, _UNCHANGED):
            return
        if error.status == _NOT_REACHED:
            raise EngineLost(error.message) from error
        raise EngineRefused(error.status, error.message) from error
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
        raise EngineLost(str(error) or type(error).__name__) from error


async def quietly(work: Awaitable[None]) -> None:
    """Do what is only worth trying: an engine that is gone has nothing left to clean up, or is cleaned up later."""
    with contextlib.suppress(EngineLost, EngineRefused):
        await work
