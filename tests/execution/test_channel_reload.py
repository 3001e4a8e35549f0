"""New code for a running instance: real agent, real workers, no isolation."""

import asyncio
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nova.execution.backends.base import InitDone
from nova.execution.channel_reload import ReloadFailed
from tests.agent.harness import Guest, descendants, guest

pytestmark = pytest.mark.anyio

WAITING = """
import os, time
def handler(event, context):
    if event:
        open(f"{event}-{context.aws_request_id}", "w").close()
    while event and not os.path.exists(event):
        time.sleep(0.01)
    return ["%s", os.getpid()]
"""
WAITING_ASYNC = """
import asyncio, os
async def handler(event, context):
    if event:
        open(f"{event}-{context.aws_request_id}", "w").close()
    while event and not os.path.exists(event):
        await asyncio.sleep(0.01)
    return ["%s", os.getpid()]
"""
WAITING_NODE = """
const fs = require("node:fs");
exports.handler = async (event, context) => {
  if (event) fs.writeFileSync(`${event}-${context.awsRequestId}`, "");
  while (event && !fs.existsSync(event)) await new Promise((done) => setTimeout(done, 10));
  return ["%s", process.pid];
};
"""


def archive(files: Mapping[str, str | bytes], *more: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return out.getvalue()


async def in_two(data: bytes) -> AsyncIterator[bytes]:
    yield data[:700]
    yield data[700:]


async def send(instance: Guest, data: bytes, **changes: Any) -> InitDone:
    values: dict[str, Any] = {
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
        "handler": instance.spec.handler,
        "entry": instance.spec.entry,
    }
    return await instance.channel.reload(in_two(data), **values | changes)


async def refused(instance: Guest, data: bytes, **changes: Any) -> tuple[str, str]:
    with pytest.raises(ReloadFailed) as caught:
        await send(instance, data, **changes)
    return caught.value.error.type, caught.value.error.message


async def until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def processes(instance: Guest) -> int:
    return len(descendants(instance.process.pid))


@pytest.mark.parametrize(
    ("runtime", "code", "spec"),
    [
        ("python", WAITING, {}),
        ("python", WAITING, {"mode": "process"}),
        ("python", WAITING, {"concurrency": 3}),
        ("python", WAITING_ASYNC, {"concurrency": 3}),
        ("node", WAITING_NODE, {}),
        ("node", WAITING_NODE, {"mode": "process"}),
        ("node", WAITING_NODE, {"concurrency": 3}),
    ],
)
async def test_new_code_serves_while_old_calls_finish(
    runtime: str, code: str, spec: dict[str, Any], tmp_path: Path
) -> None:
    """AG12: no call in flight is lost, files stay, the old worker and its tree go when nobody needs them."""
    name = "main.py" if runtime == "python" else "index.js"
    trees = tmp_path / "reloads"
    async with guest(runtime, {name: code % "first"}, tmp_path / "code", reload_dir=trees, **spec) as instance:
        await instance.init()
        go, kept = tmp_path / "go", tmp_path / "kept"
        kept.write_text("data")
        running = [instance.begin(str(go)) for _ in range(spec.get("concurrency", 1))]
        await until(lambda: len(list(tmp_path.glob("go-*"))) == len(running))
        await send(instance, archive({name: code % "second"}))
        assert (await instance.value())[0] == "second"
        assert [call.done() for call in running] == [False] * len(running)
        go.touch()
        assert {(await self_output(call))[0] for call in running} == {"first"}
        await send(instance, archive({name: code % "third"}))
        answers = [await instance.value() for _ in range(3)]
        assert {answer[0] for answer in answers} == {"third"}
        if spec.get("mode") != "process":
            assert len({answer[1] for answer in answers}) == 1
        await until(lambda: sorted(path.name for path in trees.iterdir()) == ["2"])
        standing = 3 if spec.get("mode") == "process" else 2  # the process of the next call stands already
        await until(lambda: processes(instance) == standing)
        assert kept.read_text() == "data"
        assert not instance.killed


async def self_output(call: "asyncio.Future[Any]") -> Any:
    result = await call
    assert result.error is None, result
    return json.loads(result.output)


async def test_one_kind_of_worker_may_replace_another(tmp_path: Path) -> None:
    """From one call per worker to many in one and back; who waits for a worker is served by the new code."""
    first, second = WAITING % "first", WAITING_ASYNC % "second"
    async with guest(
        "python", {"main.py": first}, tmp_path / "c", reload_dir=tmp_path / "r", concurrency=2
    ) as instance:
        await instance.init()
        go = tmp_path / "go"
        running = [instance.begin(str(go)) for _ in range(3)]
        await until(lambda: len(list(tmp_path.glob("go-*"))) == 2)
        assert (await send(instance, archive({"main.py": second}))).concurrency == 2
        several = await asyncio.gather(instance.value(), instance.value(), instance.value())
        assert [name for name, _ in several] == ["second"] * 3
        assert len({pid for _, pid in several}) == 1
        go.touch()
        assert [(await self_output(call))[0] for call in running] == ["first", "first", "second"]
        await send(instance, archive({"main.py": first}))
        assert (await instance.value())[0] == "first"
        await until(lambda: processes(instance) == 2)


async def test_a_worker_that_was_still_loading_the_old_code_is_given_up(tmp_path: Path) -> None:
    code = (
        "import os, time\nwhile os.path.exists('{block}') and not os.path.exists('{go}'): time.sleep(0.01)\n" + WAITING
    )
    block, go = tmp_path / "block", tmp_path / "go"
    old = code.replace("{block}", str(block)).replace("{go}", str(go)) % "old"
    async with guest("python", {"main.py": old}, tmp_path / "c", reload_dir=tmp_path / "r", concurrency=2) as instance:
        await instance.init()
        running = instance.begin(str(go))
        block.touch()
        waiting = instance.begin()
        await until(lambda: processes(instance) == 3)
        await send(instance, archive({"main.py": WAITING % "new"}))
        assert (await self_output(waiting))[0] == "new"
        go.touch()
        assert (await self_output(running))[0] == "old"
        assert {(await instance.value())[0] for _ in range(4)} == {"new"}
        await until(lambda: processes(instance) == 2)


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = {"main.py": "def handler(event, context):\n    return 'new'\n"}
BAD = "Nova.ValidationFailed"


@pytest.mark.parametrize(
    ("data", "changes", "kind", "words"),
    [
        (archive(GOOD), {"digest": "sha256:" + "0" * 64}, BAD, "the archive has the digest"),
        (archive(GOOD), {"size": 20_000}, BAD, "bytes arrived of 20000 announced"),
        (archive(GOOD), {"size": 100}, BAD, "more bytes arrived than were announced"),
        (archive(GOOD), {"size": 1 << 40}, "Nova.PayloadTooLarge", "at most"),
        (archive(GOOD), {"size": 0}, "Nova.PayloadTooLarge", "at most"),
        (archive(GOOD), {"entry": "../main.py"}, BAD, "../main.py"),
        (archive(GOOD), {"handler": "main.absent"}, "Nova.InitError", "main.absent"),
        (b"x" * 20_480, {}, BAD, "the archive cannot be read"),
        (archive(GOOD | {"big": b"x" * 5000})[:4000], {}, BAD, "unexpected end of data"),
        (archive(GOOD | {"/etc/nova-test": "x"}), {}, BAD, "/etc/nova-test"),
        (archive(GOOD | {"a/../../x": "x"}), {}, BAD, "a/../../x"),
        (archive(GOOD, entry("l", tarfile.SYMTYPE, "/etc")), {}, BAD, "absolute path '/etc'"),
        (archive(GOOD, entry("l", tarfile.SYMTYPE, "../..")), {}, BAD, "'l' leads out"),
        (
            archive(GOOD, entry("m", tarfile.SYMTYPE, "x/l/.."), entry("x/l", tarfile.SYMTYPE, "..")),
            {},
            BAD,
            "'m' leads out",
        ),
        (
            archive(GOOD, entry("l", tarfile.SYMTYPE, "."), entry("l/x", tarfile.SYMTYPE, "main.py")),
            {},
            BAD,
            "'x' lies below a link",
        ),
        (archive(GOOD, entry("d", tarfile.CHRTYPE)), {}, BAD, "'d' is neither"),
        (archive(GOOD, entry("h", tarfile.LNKTYPE, "main.py")), {}, BAD, "'h' is neither"),
        (archive(GOOD, entry("p", tarfile.FIFOTYPE)), {}, BAD, "'p' is neither"),
        (archive(GOOD, entry("main.py/x", tarfile.DIRTYPE)), {}, "Nova.Capacity", "cannot be stored"),
        (archive({"main.py": "import no_such_module\n"}), {}, "ModuleNotFoundError", "no_such_module"),
        (archive({"main.py": "raise ValueError('at import')\n"}), {}, "ValueError", "at import"),
        (archive({"main.py": "import os\nos._exit(3)\n"}), {}, "Nova.ExitError", "code 3"),
        (archive({"other.py": ""}), {}, "Nova.InitError", "main"),
    ],
)  # fmt: skip
async def test_a_reload_that_fails_leaves_the_old_code_serving(
    data: bytes, changes: dict[str, Any], kind: str, words: str, tmp_path: Path
) -> None:
    """AG12."""
    trees = tmp_path / "reloads"
    async with guest("python", {"main.py": WAITING % "old"}, tmp_path / "code", reload_dir=trees) as instance:
        await instance.init()
        before = await instance.value()
        found, message = await refused(instance, data, **changes)
        assert (found, words in message) == (kind, True), message
        assert await instance.value() == before
        await until(lambda: processes(instance) == 2)
        await until(lambda: not trees.exists() or not list(trees.iterdir()))
        await send(instance, archive(GOOD))
        assert await instance.value() == "new"
        assert not Path("/etc/nova-test").exists()


async def test_links_inside_and_modes_survive(tmp_path: Path) -> None:
    tool = tarfile.TarInfo("bin/tool")
    tool.mode = 0o700
    more = [tool, entry("handler", tarfile.SYMTYPE, "main.py"), entry("bin/up", tarfile.SYMTYPE, "../data")]
    code = """
import os
def handler(event, context):
    return [os.readlink("handler"), open("bin/up/x").read(), os.access("bin/tool", os.X_OK), os.access("main.py", os.X_OK)]
"""
    async with guest("python", {"main.py": WAITING}, tmp_path / "code", reload_dir=tmp_path / "r") as instance:
        await instance.init()
        await send(instance, archive({"main.py": code, "data/x": "data"}, *more))
        assert await instance.value() == ["main.py", "data", True, False]


async def test_new_code_that_does_not_finish_loading_is_given_up(tmp_path: Path) -> None:
    """AG12: also when loading hangs; what it printed comes with the reason."""
    trees = tmp_path / "reloads"
    hanging = "import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
    async with guest(
        "python", {"main.py": WAITING % "old"}, tmp_path / "code", reload_dir=trees, init_timeout_s=0.5
    ) as instance:
        await instance.init()
        with pytest.raises(ReloadFailed) as caught:
            await send(instance, archive({"main.py": hanging}))
        assert caught.value.error.type == "Nova.Cancelled"
        assert caught.value.stdout == "loading\n"
        assert (await instance.value())[0] == "old"
        await until(lambda: processes(instance) == 2 and not list(trees.iterdir()))


async def test_a_caller_that_leaves_during_the_upload_aborts_it(tmp_path: Path) -> None:
    async def stuck(began: asyncio.Event) -> AsyncIterator[bytes]:
        yield b"x" * 512
        began.set()
        await asyncio.Event().wait()

    trees = tmp_path / "reloads"
    async with guest("python", {"main.py": WAITING % "old"}, tmp_path / "code", reload_dir=trees) as instance:
        await instance.init()
        began = asyncio.Event()
        reloading = asyncio.ensure_future(
            instance.channel.reload(stuck(began), digest="sha256:", size=1024, handler="main.handler", entry="main.py")
        )
        await began.wait()
        reloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reloading
        await until(lambda: not list(trees.iterdir()))
        await send(instance, archive(GOOD))
        assert await instance.value() == "new"


async def test_the_end_of_an_old_worker_does_not_reach_the_new_calls(tmp_path: Path) -> None:
    """AG12: it costs its own call; the instance goes on."""
    old = WAITING.replace('return ["%s", os.getpid()]', "os._exit(4)")
    async with guest("python", {"main.py": old}, tmp_path / "code", reload_dir=tmp_path / "r") as instance:
        await instance.init()
        crashing = instance.begin(str(tmp_path / "go"))
        await send(instance, archive({"main.py": WAITING % "new"}))
        running = instance.begin(str(tmp_path / "later"))
        (tmp_path / "go").touch()
        assert (await crashing).error.type == "Nova.ExitError"  # type: ignore[union-attr]
        (tmp_path / "later").touch()
        assert (await self_output(running))[0] == "new"
        assert instance.channel.usable


async def test_an_old_call_that_runs_out_of_time_costs_nobody_else(tmp_path: Path) -> None:
    async with guest("python", {"main.py": WAITING % "old"}, tmp_path / "code", reload_dir=tmp_path / "r") as instance:
        await instance.init()
        overdue = instance.begin(str(tmp_path / "never"), timeout_s=0.8)
        await send(instance, archive({"main.py": WAITING % "new"}))
        running = instance.begin(str(tmp_path / "later"))
        assert (await overdue).error.type == "Nova.Timeout"  # type: ignore[union-attr]
        await until(lambda: processes(instance) == 2)
        (tmp_path / "later").touch()
        assert (await self_output(running))[0] == "new"


async def test_code_of_the_largest_accepted_size(tmp_path: Path) -> None:
    """AG13: 250 MiB in 5000 files, from a file on disk."""
    size = (250 << 20) // 5000
    tar = tmp_path / "code.tar"
    with tarfile.open(tar, "w") as out:
        for number in range(4999):
            info = tarfile.TarInfo(f"data/{number % 50}/{number}")
            info.size = size
            out.addfile(info, io.BytesIO(bytes(size)))
        code = (
            b"import os\ndef handler(event, context):\n    return sum(len(names) for _, _, names in os.walk('data'))\n"
        )
        info = tarfile.TarInfo("main.py")
        info.size = len(code)
        out.addfile(info, io.BytesIO(code))
    with tar.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    async with guest("python", {"main.py": WAITING}, tmp_path / "code", reload_dir=tmp_path / "r") as instance:
        await instance.init()
        await instance.channel.reload(
            tar, digest=digest, size=tar.stat().st_size, handler="main.handler", entry="main.py"
        )
        assert await instance.value() == 4999


async def test_an_instance_whose_code_is_fixed_says_so(tmp_path: Path) -> None:
    async with guest("python", {"main.py": WAITING % "old"}, tmp_path / "code") as instance:
        await instance.init()
        assert (await refused(instance, archive(GOOD)))[0] == "Nova.Unsupported"
        assert (await instance.value())[0] == "old"


async def test_before_the_first_code_there_is_nothing_to_replace(tmp_path: Path) -> None:
    async with guest("python", {"main.py": WAITING % "old"}, tmp_path / "code", reload_dir=tmp_path / "r") as instance:
        assert (await refused(instance, archive(GOOD)))[0] == "Nova.InvalidState"
        await instance.init()
        assert (await instance.value())[0] == "old"


async def test_an_instance_that_ends_under_a_reload_says_so(tmp_path: Path) -> None:
    hanging = f"import time\nopen({str(tmp_path / 'loading')!r}, 'w').close()\ntime.sleep(60)\n"
    async with guest("python", {"main.py": WAITING % "old"}, tmp_path / "code", reload_dir=tmp_path / "r") as instance:
        await instance.init()
        reloading = asyncio.ensure_future(send(instance, archive({"main.py": hanging})))
        await until((tmp_path / "loading").exists)
        os.kill(instance.process.pid, 9)
        with pytest.raises(ReloadFailed) as caught:
            await reloading
        assert caught.value.error.type == "Nova.InstanceLost"
