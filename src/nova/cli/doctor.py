"""What Nova needs of this host, and what of it is there."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import httpx
import psycopg
from rich.table import Table
from rich.text import Text

from nova.config import Settings
from nova.errors import NovaError
from nova.execution.backends.sandbox.probe import diagnose
from nova.execution.registries import Npm, Pip, find_npm, find_pip
from nova.listen import listening_socket, parse
from nova.runtimes.registry import Runtimes
from nova.store import embedded, migrate

Standing = Literal["ok", "limited", "missing"]
_OLDEST_POSTGRES = 14
_LITTLE_SPACE_MB = 1024
_STYLES: dict[Standing, str] = {"ok": "green", "limited": "yellow", "missing": "bold red"}
_ESSENTIAL_RUNTIME = "python"


@dataclass(frozen=True, slots=True)
class Finding:
    """``limited``: Nova works, but something is not enforced or not available, as ``detail`` says. ``missing``: it does
    not work without. ``fix`` says what to do and is empty when nothing is to be done."""

    part: str
    name: str
    standing: Standing
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; starts a few short processes and changes nothing."""
    runtimes = Runtimes()
    return [
        *_sandbox(),
        *_runtimes(runtimes),
        *asyncio.run(_installers(runtimes)),
        _postgres(settings),
        _data_dir(settings.data_dir),
        _port(settings),
    ]


def table(findings: Sequence[Finding]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("PART", "NAME", "STANDING", "DETAIL"):
        shown.add_column(title, overflow="fold")
    for finding in findings:
        detail = Text(finding.detail)
        if finding.fix:
            detail.append(f"\n→ {finding.fix}", "bold")
        shown.add_row(finding.part, finding.name, Text(finding.standing, _STYLES[finding.standing]), detail)
    return shown


def _sandbox() -> Iterator[Finding]:
    for found in diagnose():
        standing: Standing = "ok" if found.ok else "missing" if found.needed else "limited"
        yield Finding("sandbox", found.name, standing, found.detail, found.fix)


def _runtimes(runtimes: Runtimes) -> Iterator[Finding]:
    for runtime in runtimes.list():
        if runtime.toolchain is None:
            standing: Standing = "missing" if runtime.id == _ESSENTIAL_RUNTIME else "limited"
            yield Finding("runtimes", runtime.id, standing, runtime.reason, f"install {runtime.manifest.name}")
        elif runtime.toolchain.program is None:
            yield Finding("runtimes", runtime.id, "ok", "needs nothing of the host")
        else:
            yield Finding("runtimes", runtime.id, "ok", f"{runtime.toolchain.version}, {runtime.toolchain.program}")


async def _installers(runtimes: Runtimes) -> list[Finding]:
    """What builds install dependencies with; without one, functions of that language cannot have any."""
    node = runtimes.get("node").toolchain
    program = node.program if node is not None else None
    found = [await _installer("pip", find_pip())]
    if program is not None:
        found.append(await _installer("npm", find_npm(program)))
    return found


async def _installer(name: str, search: Awaitable[Pip | Npm]) -> Finding:
    try:
        installer = await search
    except NovaError as exc:
        return Finding("builds", name, "limited", exc.detail, f"install {name}")
    hosts = sorted({registry.host for registry in installer.access.registries})
    return Finding("builds", name, "ok", f"{installer.version}, may reach {', '.join(hosts) or 'nothing'}")


def _postgres(settings: Settings) -> Finding:
    if not settings.postgres.dsn:
        try:
            return Finding("store", "PostgreSQL", "ok", f"embedded, {embedded.server_version()}")
        except RuntimeError as exc:
            return Finding("store", "PostgreSQL", "missing", str(exc), "name a server with --pg-dsn")
    try:
        return _given_postgres(settings.postgres.dsn)
    except (psycopg.Error, OSError) as exc:
        return Finding("store", "PostgreSQL", "missing", str(exc).strip(), "check --pg-dsn and that the server runs")


def _given_postgres(dsn: str) -> Finding:
    with psycopg.connect(dsn, connect_timeout=5) as conn:
        number = conn.info.server_version
    major = number // 10000
    if major < _OLDEST_POSTGRES:
        return Finding("store", "PostgreSQL", "missing", f"version {major}", f"use version {_OLDEST_POSTGRES} or newer")
    due = len(asyncio.run(migrate.pending(dsn)))
    schema = f"{due} migrations are due; nova up applies them" if due else "the schema is up to date"
    return Finding("store", "PostgreSQL", "ok", f"version {major}.{number % 10000}, {schema}")


def _data_dir(folder: Path) -> Finding:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(
            "store", "data directory", "missing", f"{nearest} cannot be written", "choose another with --data-dir"
        )
    free = shutil.disk_usage(nearest).free >> 20
    if free < _LITTLE_SPACE_MB:
        return Finding("store", "data directory", "limited", f"{folder}: only {free} MiB are free", "make room")
    return Finding("store", "data directory", "ok", f"{folder}, {free >> 10} GiB free")


def _port(settings: Settings) -> Finding:
    try:
        address = parse(settings.daemon.http_addr, open_access=settings.auth.enabled == "false")
        listening_socket(address).close()
    except NovaError as exc:
        return Finding("network", "address", "missing", exc.detail, "choose another with --http")
    except OSError as exc:
        if _is_nova(address.shown):
            return Finding("network", "address", "ok", f"{address.shown}: a Nova server is running there")
        return Finding("network", "address", "missing", exc.strerror or str(exc), "choose another with --http")
    return Finding("network", "address", "ok", f"{address.shown} is free")


def _is_nova(address: str) -> bool:
    try:
        answer = httpx.get(f"http://{address}/health/live", timeout=2, trust_env=False)
        return answer.status_code == 200 and "status" in answer.json()
    except (httpx.HTTPError, ValueError, TypeError):
        return False
