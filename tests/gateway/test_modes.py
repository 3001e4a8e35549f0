"""What is known of a URL's mode, and when it is looked up again."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.domain.version import UrlMode
from nova.errors import NovaError
from nova.gateway import modes
from nova.gateway.modes import UrlModes
from nova.payload import encode

pytestmark = pytest.mark.anyio


class World:
    """Functions, and what is notified of them."""

    def __init__(self) -> None:
        self.mode: UrlMode | None = "stream"
        self.down = False
        self.asked = 0
        self.connected = True
        self.now = 100.0
        self.during: Callable[[], None] = lambda: None

    async def url_mode(self, scope: Scope, name: str) -> UrlMode | None:
        self.asked += 1
        mode = self.mode
        self.during()
        if self.down:
            raise NovaError("dependency_unavailable", "the database does not answer")
        return mode

    def on(self, channel: str, callback: Callable[[str], None]) -> None:
        self._callback = callback

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self.reconnect = callback

    def changed(self, name: str = "hello") -> None:
        self._callback(encode({"tenant": "default", "namespace": "default", "name": name, "generation": 2}).decode())

    @property
    def clock(self) -> Any:
        return SimpleNamespace(monotonic=lambda: self.now)


async def test_a_mode_is_asked_for_once_until_the_function_changes() -> None:
    world = World()
    known = UrlModes(world, world, world.clock)
    for _ in range(3):
        assert await known.streams(Scope(), "hello")
    world.changed("another")
    assert await known.streams(Scope(), "hello")
    assert world.asked == 1
    world.mode = "buffered"
    world.changed()
    assert not await known.streams(Scope(), "hello")
    world.reconnect()
    assert not await known.streams(Scope(), "hello")
    assert world.asked == 3
    world.mode = None  # what does not exist is asked for each time: it may in the next moment
    world.changed()
    assert [await known.streams(Scope(), "hello") for _ in range(2)] == [False, False]
    assert world.asked == 5


async def test_what_changes_while_it_is_read_is_not_kept() -> None:
    world = World()
    known = UrlModes(world, world, world.clock)
    world.during = world.changed
    assert await known.streams(Scope(), "hello")
    world.during, world.mode = (lambda: None), "buffered"
    assert not await known.streams(Scope(), "hello")


async def test_without_notifications_it_is_read_again_and_without_a_database_remembered() -> None:
    world = World()
    known = UrlModes(world, world, world.clock)
    assert await known.streams(Scope(), "hello")
    world.connected = False
    assert await known.streams(Scope(), "hello")
    assert world.asked == 1
    world.now += 2
    assert await known.streams(Scope(), "hello")
    assert world.asked == 2
    world.down = True
    world.now += 2
    assert await known.streams(Scope(), "hello")
    with pytest.raises(NovaError, match="dependency_unavailable"):
        await known.streams(Scope(), "other")


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_KEPT", 2)
    world = World()
    known = UrlModes(world, world, world.clock)
    for name in ("a", "b", "c", "a"):
        await known.streams(Scope(), name)
    assert world.asked == 4
