"""Files as a source of events: once for each change, in whatever way it is noticed."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova import payload
from nova.events.triggers import filesystem
from nova.events.triggers.base import SourceError
from nova.events.triggers.filesystem import Config
from nova.store.db import Database
from tests.events.support import Calls
from tests.events.triggers.sources import Kept, running
from tests.events.triggers.support import Plane, context, nebula, planed, settings_for, until

pytestmark = pytest.mark.anyio


def watching(root: Path, **config: Any) -> filesystem.Filesystem:
    settled = Config.model_validate({"path": str(root), "settle_ms": 60, **config})
    return filesystem.make(settled, context(settings_for(root.parent)))


def changes(sink: Kept) -> list[tuple[str, str]]:
    return [(data["op"], data["path"]) for data in sink.data]


async def test_each_change_makes_one_event_and_what_was_there_makes_none(tmp_path: Path) -> None:
    """EV19: names with quotes, and names that are not UTF-8, arrive; a file in the making is waited for."""
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    (root / "old.txt").write_text("before")
    sink = Kept()
    async with running(lambda: watching(root), sink):
        quoted = root / "deep" / 'it\'s "new".txt'
        with quoted.open("w") as file:
            for _ in range(5):
                file.write("x" * 100)
                file.flush()
        await sink.have(1)
        (root / "old.txt").write_text("after, longer")
        await sink.have(2)
        quoted.unlink()
        await sink.have(3)
        (root / os.fsdecode(b"\xff.bin")).write_text("1")
        await sink.have(4)
        name = 'deep/it\'s "new".txt'
        assert changes(sink) == [
            ("created", name),
            ("modified", "old.txt"),
            ("deleted", name),
            ("created", "\ufffd.bin"),
        ]
        assert sink.data[0]["size"] == 500
        assert sink.events[0].ordering_key == sink.events[2].ordering_key
        assert len({event.id for event in sink.events}) == 4
        assert (sink.events[0].type, sink.events[0].subject) == ("nova.trigger.filesystem", name)


async def test_what_happened_while_nobody_watched_is_found(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name in ("same", "changed", "gone"):
        (root / name).write_text(name)
    sink = Kept()
    async with running(lambda: watching(root, existing=True), sink):
        await sink.have(3)
        await sink.until(lambda: sink.saved is not None)
    assert {op for op, _ in changes(sink)} == {"created"}
    (root / "changed").write_text("something else")
    (root / "gone").unlink()
    (root / "new").write_text("new")
    first, sink.events = list(sink.events), []
    async with running(lambda: watching(root, existing=True), sink):
        await sink.have(3)
    assert sorted(changes(sink)) == [("created", "new"), ("deleted", "gone"), ("modified", "changed")]

    # what was delivered and not yet remembered comes again, under the same name
    sink.saved, sink.events = None, []
    async with running(lambda: watching(root, existing=True), sink):
        await sink.have(3)
    assert {event.id for event in sink.events} & {event.id for event in first}


async def test_only_what_fits_the_pattern_and_the_kinds_of_change(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "a" / "b").mkdir(parents=True)
    sink = Kept()
    async with running(lambda: watching(root, pattern="a/**/*.csv", events=["created"]), sink):
        for name in ("x.csv", "a/y.txt", "a/z.csv", "a/b/w.csv"):
            (root / name).write_text(name)
        os.symlink("/etc/passwd", root / "a" / "link.csv")
        await sink.have(2)
        (root / "a" / "z.csv").unlink()
        (root / "a" / "last.csv").write_text("last")
        await sink.have(3)
    assert sorted(changes(sink)) == [("created", "a/b/w.csv"), ("created", "a/last.csv"), ("created", "a/z.csv")]


async def test_only_directories_below_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside them, nor through a link or dots; and none while no root is set."""
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    allowed.mkdir()
    secret.mkdir()
    (allowed / "link").symlink_to(secret)
    (allowed / "file").write_text("")
    settings = settings_for(allowed)
    for path in (secret, allowed / "link", f"{allowed}/../secret", allowed / "file", allowed / "missing"):
        source = filesystem.make(Config(path=str(path)), context(settings))
        with pytest.raises(SourceError, match=r"not below|not a directory"):
            await source.check()
        with pytest.raises(SourceError):
            await source.run(Kept())
    await filesystem.make(Config(path=str(allowed)), context(settings)).check()
    with pytest.raises(SourceError, match="fs_roots is empty"):
        await filesystem.make(Config(path=str(allowed)), context(settings_for())).check()
    with pytest.raises(ValueError, match="absolute"):
        Config(path="relative")

    monkeypatch.setattr(filesystem, "MAX_FILES", 1)
    (allowed / "second").write_text("")
    with pytest.raises(SourceError, match="more than 1 files"):
        await filesystem.make(Config(path=str(allowed)), context(settings)).run(Kept())


async def test_files_reach_functions_through_a_trigger(tmp_path: Path, database: Database) -> None:
    """In a batch, and from where it was when it was paused."""
    root = tmp_path / "in"
    root.mkdir()
    calls, settings = Calls(), settings_for(tmp_path)
    async with planed(database, settings) as plane, nebula(database, calls, settings):
        config = {"path": str(root), "settle_ms": 0}
        made = await plane.create(type="filesystem", config=config, batch={"size": 10, "window_ms": 200})
        await plane.running(made)
        for name in "ab":
            (root / name).write_text(name)
        await until(lambda: sum(len(payload.decode(call.payload)) for call in calls.seen) == 2)
        await plane.post(f"/triggers/{made['id']}/pause")
        await until(lambda: _stopped(plane, made))
        (root / "c").write_text("c")
        await plane.post(f"/triggers/{made['id']}/resume")
        await until(lambda: any(b'"path":"c"' in call.payload for call in calls.seen))


async def _stopped(plane: Plane, made: dict[str, Any]) -> bool:
    return (await plane.status(made))["node"] is None


async def test_what_changes_before_notifications_begin_is_noticed_when_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EV19: not at the next look at everything, a minute later."""
    root = tmp_path / "in"
    root.mkdir()
    sink, written = Kept(), asyncio.Event()
    watch = filesystem.awatch

    async def late(*args: Any, **more: Any) -> AsyncIterator[Any]:
        await written.wait()
        async for changes in watch(*args, **more):
            yield changes

    monkeypatch.setattr(filesystem, "awatch", late)
    monkeypatch.setattr(filesystem, "RESCAN_S", 3600.0)
    async with running(lambda: watching(root), sink):
        await asyncio.sleep(0.3)  # its first look is over
        (root / "early.txt").write_text("1")
        written.set()
        await sink.have(1)
    assert changes(sink) == [("created", "early.txt")]
