"""Agents behind published ports, for hosts where no socket can be shared with containers."""

import asyncio
import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from nova.execution.backends.docker.backend import DockerBackend
from nova.execution.backends.docker.published import Published
from tests.backends.docker import ground, published

pytestmark = [pytest.mark.anyio, pytest.mark.root]

REPOSITORY = Path(__file__).parents[3]


async def test_a_container_behind_a_port_answers_and_reaches_nobody(tmp_path: Path) -> None:
    """BE3: neither the host, nor another container, nor what lies beyond; what asks for a network is refused by name."""
    if reason := ground.missing():
        pytest.skip(reason)
    engine, node = ground.engine(), f"port-{uuid.uuid4().hex[:6]}"
    process = await asyncio.create_subprocess_exec(
        "nsenter",
        f"--net=/proc/{engine.pid}/ns/net",
        *(sys.executable, "-m", published.__name__, str(tmp_path), node),
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    report = json.loads(output)
    port, reached = report.pop("port"), report.pop("reached")
    assert {"reached", "refused"} & set(reached) == set(), reached
    assert report == {
        "available": True,
        "reason": "",
        "rules": "no",
        "template": False,
        "answer": [3_000_000, 2_000_000],
        "egress": ["unsupported", "network_policy.isolation_mode egress-only"],
        "left": 0,
    }
    assert [(one["HostIp"], 21000 <= int(one["HostPort"]) < 21100) for one in port] == [("127.0.0.1", True)]


async def test_without_root_nothing_keeps_containers_off_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE6"""
    if reason := ground.missing():
        pytest.skip(reason)
    options = ground.options(tmp_path, "no-root-port", published=Published("nova-test-net", 21000, 21099))
    backend = DockerBackend(options, ground.images())
    with monkeypatch.context() as patched:
        patched.setattr("os.geteuid", lambda: 1000)
        await backend.start()
    try:
        capabilities = await backend.capabilities()
        assert not capabilities.available
        assert "docker.channel" in capabilities.reason
    finally:
        await backend.close()
