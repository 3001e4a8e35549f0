"""One event loop for all of these tests: gRPC serves every loop of a process from one queue, and what a closed connection
still has in it would be delivered to a loop that is closed too."""

import asyncio
from collections.abc import AsyncIterator

import pytest


@pytest.fixture(scope="package", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    yield
    await asyncio.sleep(0.1)  # what is still queued
