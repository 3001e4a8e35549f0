"""Handlers of the runtimes."""

from pathlib import Path

from nova.api.runtimes import RuntimeView
from nova.api.table import Empty, Page, PageQuery
from nova.errors import NovaError, not_found
from nova.http import paging
from nova.http.handler import Req, handles
from nova.runtimes.registry import Runtime, Runtimes


class RuntimeHandlers:
    """What :class:`Runtimes` knows, as answers."""

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes

    @handles("runtime.list")
    async def list(self, req: Req[Empty, PageQuery]) -> Page[RuntimeView]:
        after = paging.decode(req.query.cursor, str)
        left = [runtime for runtime in self._runtimes.list() if after is None or runtime.id > str(after[0])]
        shown = left[: req.query.limit]
        more = len(left) > len(shown)
        return Page(
            items=[view(runtime) for runtime in shown], next_cursor=paging.encode([shown[-1].id]) if more else None
        )

    @handles("runtime.get")
    async def get(self, req: Req[Empty, Empty]) -> RuntimeView:
        name = req.params["id"]
        try:
            return view(self._runtimes.get(name))
        except NovaError:
            raise not_found("runtime", name) from None


def view(runtime: Runtime) -> RuntimeView:
    manifest = runtime.manifest
    known = {"{entry}": f"/code/{manifest.inline_name(manifest.default_handler)}", "{input}": "/tmp/input.json"}
    if runtime.toolchain is not None and runtime.toolchain.program is not None:
        known["{tool}"] = Path(runtime.toolchain.program).name
    else:
        known["{tool}"] = manifest.toolchain.program
    return RuntimeView(
        id=runtime.id,
        name=manifest.name,
        version=runtime.toolchain.version or None if runtime.toolchain else None,
        versions=runtime.ids()[1:],
        status="available" if runtime.toolchain else "unavailable",
        reason=runtime.reason or None,
        family=manifest.family,
        entrypoint=[known.get(word, word) for word in manifest.script],
        file_extension=manifest.extension,
        default_handler=manifest.default_handler,
        modes=list(manifest.modes),
        manifests=list(manifest.dependency_manifests),
        template=manifest.template.lstrip("\n"),
    )
