"""The line of greeting before an agent's bytes, from a server that speaks it as Firecracker does."""

import asyncio
from pathlib import Path

import pytest

from nova.execution.backends.firecracker.vsock import await_port, dial

pytestmark = pytest.mark.anyio


class Firecracker:
    """Refuses the first connections, as while nobody listens inside."""

    def __init__(self, refuse: int, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self._refuse = refuse
        self._answer = answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readline())
        if len(self.asked) > self._refuse:
            writer.write(self._answer)
            await writer.drain()
        writer.close()


async def test_what_follows_the_greeting_is_the_agent_s(tmp_path: Path) -> None:
    firecracker = Firecracker(2, b"OK 1073741824\nfrom the agent\n")
    async with await asyncio.start_unix_server(firecracker, tmp_path / "v.sock"):
        async with asyncio.timeout(20):
            sock = await await_port(tmp_path / "v.sock", 9999)
            with sock:
                received = await asyncio.get_running_loop().sock_recv(sock, 100)
    assert received == b"from the agent\n"
    assert firecracker.asked == [b"CONNECT 9999\n"] * 3


@pytest.mark.parametrize("answer", [b"", b"ERR no\n", b"OK" * 100])
async def test_anything_but_the_greeting_is_a_refusal(tmp_path: Path, answer: bytes) -> None:
    async with await asyncio.start_unix_server(Firecracker(0, answer), tmp_path / "v.sock"):
        with pytest.raises(ConnectionRefusedError):
            await dial(tmp_path / "v.sock", 9999)
