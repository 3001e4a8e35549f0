"""Making a zygote's children cheap: everything they need is imported, has run once, and is out of the collector's way."""

import gc
import hashlib
import sys
from collections.abc import Sequence

from nova.agent import frames, supervisor
from nova.agent.messages import FunctionRef, InitHead, LoadedHead
from nova.agent.runners import bootstrap
from nova.agent.worker import WorkerSession, init_line


def warm_up(modules: Sequence[str]) -> None:
    """Call once in the process that agents are forked from, before the first fork. Opens nothing and starts no thread.

    ``modules`` are the bootstraps of the runtimes whose workers are forked (``WorkerLaunch.module``). Afterwards garbage
    collection is off; a worker turns it on again when its code is loaded.
    """
    sys.dont_write_bytecode = True
    for name in modules:
        module = bootstrap(name)
        module.preload()
        module.rehearse()
    _rehearse_agent()
    gc.collect()
    gc.freeze()
    gc.disable()


def _rehearse_agent() -> None:
    """The codecs, with what an Init looks like. ``supervisor`` is imported for its own sake."""
    init = InitHead(
        function=FunctionRef("0", "rehearsal", 1, "default", "default"),
        instance_id="0",
        runtime="python",
        mode="persistent",
        handler="main.handler",
        entry="main.py",
        entry_kind="handler",
        env={},
        memory_mb=128,
        timeout_s=30,
        concurrency=1,
        open_files=1024,
    )
    decoder, session = frames.FrameDecoder(), WorkerSession()
    for frame in decoder.feed(frames.encode(frames.INIT, 1, init.as_head())):
        InitHead.of(frame.head)
    frames.encode(frames.RESP, 1, LoadedHead(ok=True, worker=0).as_head())
    init_line({"handler": "main.handler"})
    session.feed(b'{"ready": {"concurrency": 1}}\n{"error": {"type": "ValueError", "message": "", "stack": []}}\n')
    hashlib.sha256(supervisor.VERSION.encode()).digest()
