"""Functions of the conformance suite: one backend, code given as text."""

import json
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.execution.backends.base import (
    Backend,
    InitSpec,
    Instance,
    InstanceSpec,
    LayerMount,
    Snapshotter,
    VolumeMount,
    WorkerCall,
    WorkerResult,
)
from tests.backends import guest
from tests.backends.cases import Case, NotTranslated
from tests.execution.sinks import Reader

GUEST = Path(guest.__file__).read_text()
OFFLINE = NetworkPolicy(isolation_mode="strict")
MEMORY_MB, PIDS, TMP_MB = 128, 40, 8
TIGHT = Limits(memory_mb=MEMORY_MB, pids=PIDS, tmp_mb=TMP_MB)
PATIENCE_S = 30.0


def write_code(code: str, folder: Path, name: str = "main.py") -> Path:
    """A code tree as the platform stores it: readable by every user."""
    tree = folder / f"code-{uuid.uuid4().hex[:8]}"
    tree.mkdir(mode=0o755)
    (tree / name).write_text(code)
    return tree


@dataclass
class Function:
    """A loaded instance."""

    backend: Backend
    instance: Instance

    async def answer(self, event: Any, *, timeout_s: float = PATIENCE_S, reader: Reader | None = None) -> WorkerResult:
        return await self.instance.channel.call(
            WorkerCall(
                request_id=uuid.uuid4().hex,
                payload=json.dumps(event).encode(),
                context=b'{"request_id": "r"}',
                deadline=time.monotonic() + timeout_s,
                sink=reader,
            )
        )

    async def do(self, what: str, **event: Any) -> Any:
        """What the handler returned; an error fails the test."""
        result = await self.answer({"do": what, **event})
        assert result.error is None, result.error
        return json.loads(result.output or b"null")

    async def error(self, what: str, *, timeout_s: float = PATIENCE_S, **event: Any) -> str:
        """The type of the error that it ends with."""
        result = await self.answer({"do": what, **event}, timeout_s=timeout_s)
        assert result.error is not None, result.output
        return result.error.type

    async def stop(self) -> None:
        await self.backend.stop(self.instance, reason="test")


@dataclass
class Maker:
    """Makes instances of :data:`GUEST` on one backend. ``code`` is made once."""

    case: Case
    backend: Backend
    folder: Path
    code: Path | None = None

    def spec(
        self,
        limits: Limits = TIGHT,
        network: NetworkPolicy = OFFLINE,
        layers: tuple[LayerMount, ...] = (),
        mounts: tuple[VolumeMount, ...] = (),
    ) -> InstanceSpec:
        if self.code is None:
            self.code = self.artifact(GUEST)
        case = self.case
        return InstanceSpec(
            uuid.uuid4().hex, case.runtime, case.runtime_version, self.code, limits, network, layers, mounts
        )

    def artifact(self, code: str) -> Path:
        """Skips the test where the case's runtime has no such function."""
        try:
            return self.case.artifact(code, self.folder)
        except NotTranslated as reason:
            pytest.skip(f"{self.case.name}: {reason}")

    def init(self, limits: Limits = TIGHT, env: dict[str, str] | None = None) -> InitSpec:
        return InitSpec(
            function_id="f",
            name="test",
            version=1,
            tenant="default",
            namespace="default",
            runtime=self.case.runtime,
            runtime_version=self.case.runtime_version,
            mode="persistent",
            handler="main.handler",
            entry="main.py",
            entry_kind="handler",
            env=env or {},
            memory_mb=limits.memory_mb,
            timeout_s=30,
            concurrency=1,
            open_files=limits.open_files,
        )

    async def load(self, spec: InstanceSpec | None = None, env: dict[str, str] | None = None) -> Function:
        spec = spec or self.spec()
        instance = await self.backend.create(spec)
        try:
            await instance.channel.init(self.init(spec.limits, env))
        except BaseException:
            await self.backend.stop(instance, reason="init failed")
            raise
        return Function(self.backend, instance)

    async def keep(self, key: str) -> None:
        """A snapshot of the loaded function."""
        assert isinstance(self.backend, Snapshotter)
        await self.backend.snapshot(key, self.spec(), self.init())

    async def restore(self, key: str) -> Function | None:
        assert isinstance(self.backend, Snapshotter)
        instance = await self.backend.restore(key, replace(self.spec(), instance_id=uuid.uuid4().hex))
        if instance is None:
            return None
        await instance.channel.init(self.init())
        return Function(self.backend, instance)
