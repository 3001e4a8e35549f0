"""Builds tell the metrics how they ended."""

from pathlib import Path

import pytest

from nova.config import BuildSettings, MetricsSettings, QueueSettings
from nova.execution.backends.base import CommandResult
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.execution.metrics import Metrics
from nova.runtimes.registry import Runtimes
from nova.store.blobs import BlobStore
from nova.store.builds import BuildStore
from nova.store.db import Database
from nova.store.listen import Listener
from tests.execution.builds_support import Deployer, Scripted, finished

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("exit_code", "status"), [(0, "succeeded"), (1, "failed")])
async def test_a_build_is_counted_by_its_end(database: Database, tmp_path: Path, exit_code: int, status: str) -> None:
    """OB1: builds_total and build_milliseconds move with every build that ends."""
    metrics, runner, blobs = Metrics(MetricsSettings()), Scripted(), BlobStore(database)
    runner.result = CommandResult(exit_code)
    settings = BuildSettings()
    listener = Listener(database.dsn)
    await listener.start()
    builder = Builder(database, blobs, Runtimes(), runner, settings, tmp_path, finished=metrics.build_finished)
    service = BuildService(database, listener, blobs, builder, build=settings, queue=QueueSettings(), grace_s=0.1)
    await service.start()
    try:
        build_id = await Deployer(database).deploy(
            "hello", {"main.py": "def handler(event):\n    return 1\n", "requirements.txt": "thing\n"}
        )
        build = await finished(listener, BuildStore(database), build_id)
    finally:
        await service.close()
        await listener.close()
    assert build.status == status
    assert dict(metrics.counters.builds) == {("python", status): 1}
    assert sum(metrics.build_times["python",].counts) == 1
