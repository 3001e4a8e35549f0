"""The control plane's function handlers behind the real binder, on the test's own database."""

import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from nova.api import aliases, code, functions, layers, rollouts, state, versions, volumes
from nova.config import Settings
from nova.control.aliases import AliasHandlers
from nova.control.code import CodeHandlers
from nova.control.deploy import Deployer
from nova.control.functions import FunctionHandlers
from nova.control.layers import LayerHandlers
from nova.control.remount import Remounter
from nova.control.rollouts import RolloutHandlers, ShadowHandlers
from nova.control.state import StateHandlers
from nova.control.uploads import Uploads
from nova.control.versions import VersionHandlers
from nova.control.volumes import VolumeHandlers
from nova.domain.identity import Scope
from nova.domain.needs import Needs
from nova.errors import FieldError, NovaError
from nova.runtimes.registry import Runtimes
from nova.store.aliases import AliasStore
from nova.store.blobs import BlobStore
from nova.store.builds import BuildStore
from nova.store.db import Database
from nova.store.functions import FunctionStore
from nova.store.layers import LayerStore
from nova.store.references import References
from nova.store.rollouts import RolloutStore
from nova.store.shadows import ShadowStore
from nova.store.state import StateStore
from nova.store.versions import VersionStore
from nova.store.volumes import VolumeStore
from tests.http.harness import Api, management

ROUTES = tuple(
    route for noun in (functions, code, versions, aliases, rollouts, state, layers, volumes) for route in noun.ROUTES
)
HELLO = "def handler(event, context):\n    return {'hello': event}\n"
RUNTIMES = Runtimes()


@dataclass
class Backends:
    """Stands for the execution plane's backends: enforces everything but what a test names."""

    refuse: set[str] = field(default_factory=set)

    async def check(self, backend: str, needs: Needs) -> str:
        if "network_policy" in self.refuse and needs.network is not None:
            problem = FieldError("network_policy", "sandbox cannot enforce it on this host")
            raise NovaError("unsupported", problem.message, errors=[problem])
        for name, wanted in (("layers", needs.layers), ("mounts", needs.volumes)):
            if name in self.refuse and wanted:
                raise NovaError("unsupported", f"{name}: sandbox has none", errors=[FieldError(name, "none")])
        return "sandbox"


@dataclass
class Control:
    """``client`` speaks as the local operator."""

    api: Api
    settings: Settings
    backends: Backends
    database: Database
    functions: FunctionStore
    versions: VersionStore
    blobs: BlobStore
    builds: BuildStore
    rollouts: RolloutStore

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    async def create(self, name: str = "hello", **members: Any) -> dict[str, Any]:
        """A function, Python and one file unless said otherwise."""
        body = {"name": name, "runtime": "python", **members}
        if not {"code", "files", "code_path"} & body.keys():
            body["code"] = HELLO
        answer = await self.client.post("/functions", json=body)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def get(self, path: str) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def patch(self, name: str = "hello", **members: Any) -> dict[str, Any]:
        answer = await self.client.patch(f"/functions/{name}", json=members)
        assert answer.status_code == 200, answer.text
        changed: dict[str, Any] = answer.json()
        return changed

    async def upload(self, archive: bytes, name: str = "hello", **meta: Any) -> httpx.Response:
        files = {"archive": ("code.bin", archive, "application/octet-stream")}
        data = {"meta": httpx.Request("POST", "http://x", json=meta).content.decode()} if meta else {}
        return await self.client.put(f"/functions/{name}/code", files=files, data=data)

    async def artifact(self, name: str = "hello", version: int | None = None) -> dict[str, tarfile.TarInfo]:
        """The members of what a version mounts at /code."""
        record = await self.functions.lookup(Scope(), name)
        assert record is not None
        found = await self.versions.version(record.id, version or record.head_version)
        assert found is not None
        assert found.artifact is not None
        with tarfile.open(fileobj=io.BytesIO(await self.blobs.get(found.artifact))) as tar:
            return {member.name: member for member in tar}


@asynccontextmanager
async def control(database: Database, settings: Settings | None = None) -> AsyncIterator[Control]:
    settings = settings or Settings()
    backends = Backends()
    blobs = BlobStore(database)
    function_store, version_store, alias_store = (
        FunctionStore(database),
        VersionStore(database, blobs),
        AliasStore(database),
    )
    deployer = Deployer(database, function_store, version_store, blobs, RUNTIMES, backends)
    rollout_store = RolloutStore(database, function_store, version_store, alias_store)
    uploads = Uploads(settings.limits)
    owners = [
        FunctionHandlers(
            deployer, function_store, version_store, uploads, References(database), settings.limits, settings.functions
        ),
        CodeHandlers(deployer, function_store, version_store, blobs, uploads, settings.limits, settings.functions),
        VersionHandlers(deployer, function_store, version_store),
        StateHandlers(function_store, StateStore(database, lambda: 64 << 20)),
        AliasHandlers(deployer, function_store, version_store, alias_store),
        RolloutHandlers(rollout_store),
        LayerHandlers(database, LayerStore(database), blobs, RUNTIMES, uploads, settings.limits, Remounter(deployer)),
        VolumeHandlers(database, VolumeStore(database), Remounter(deployer)),
        ShadowHandlers(rollout_store, ShadowStore(database)),
    ]
    async with management(database, owners, ROUTES, settings=settings) as api:
        yield Control(
            api,
            settings,
            backends,
            database,
            function_store,
            version_store,
            blobs,
            BuildStore(database),
            rollout_store,
        )


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, which must have this status and code."""
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["request_id"] == answer.headers["X-Request-ID"]
    return document


def fields(document: Mapping[str, Any]) -> list[str]:
    return [error["field"] for error in document.get("errors", [])]


def zip_of(files: Mapping[str, str | bytes], *, modes: Mapping[str, int] | None = None) -> bytes:
    """A zip; ``modes`` are whole st_mode values."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if modes and path in modes:
                entry.create_system = 3
                entry.external_attr = modes[path] << 16
            archive.writestr(entry, content)
    return out.getvalue()


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tar_member(path: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.mode = kind, link, mode
    return info
