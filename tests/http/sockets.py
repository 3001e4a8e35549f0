"""A client that sends the bytes it is told to, for what no HTTP library would send."""

import asyncio
from dataclasses import dataclass
from typing import Self


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection to 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the server may have reset it: that is what some tests are about

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def request(self, method: str, target: str, body: bytes = b"", *headers: str) -> Reply:
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost:9000", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return await self.reply(head=method == "HEAD")

    async def reply(self, *, head: bool = False) -> Reply:
        """The next answer."""
        async with asyncio.timeout(20):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = raw[:-4].decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            status = int(first.split(" ")[1])
            if head or status in (204, 304):
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self._chunks()
        return Reply(status, headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return body

    async def closed(self) -> bool:
        """True when the server closes the connection; waits for it up to 20 s."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True
