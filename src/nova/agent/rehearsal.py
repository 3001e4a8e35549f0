"""A run of the agent's code on made-up data: in the zygote to warm the code, in each agent to touch its memory early."""

import hashlib
import hmac

from nova.agent import environment, frames
from nova.agent.messages import FunctionRef, HelloHead, InitHead, LoadedHead, WelcomeHead
from nova.agent.worker import WorkerSession, init_line


def codecs() -> None:
    """Hello, Init and a worker's first lines through the codecs, in memory. Opens nothing."""
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
    HelloHead.of(HelloHead(token="00", instance_id="0").as_head() | {"proto": [1, 1]})
    frames.encode(frames.HELLO, 1, WelcomeHead(agent="0", runtimes=("python",), boot_us=0, fds=3).as_head())
    environment.build(init, "/code")
    frames.encode(frames.RESP, 1, LoadedHead(ok=True, worker=0).as_head())
    init_line({"handler": "main.handler"})
    session.feed(b'{"ready": {"concurrency": 1}}\n{"error": {"type": "ValueError", "message": "", "stack": []}}\n')
    hmac.compare_digest(hashlib.sha256(b"").digest(), b"")
