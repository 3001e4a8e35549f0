"""Images by request: what is there, what is being made, what could not be."""

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from nova.api.images import ImageView, PrepareBody
from nova.api.table import Empty, Page, PageQuery
from nova.errors import NovaError, as_refusal, not_found
from nova.execution.images.images import Form, ImageFile, Images
from nova.execution.images.progress import Progress, ProgressFile
from nova.http import paging
from nova.http.handler import Req, handles
from nova.service import Background

log = structlog.get_logger(__name__)

_FORMS: Final[dict[str, Form]] = {"docker": "tar", "firecracker": "ext4", "qemu": "ext4"}


class ImageHandlers:
    """A service: closed, it gives up what is being made, of which nothing is left."""

    def __init__(self, images: Images, node: str) -> None:
        self._images = images
        self._node = node
        self._progress = ProgressFile(images.folder)
        self._tasks = Background("images")
        self._making: set[tuple[str, Form]] = set()

    async def start(self) -> None:
        """Nothing is made before somebody asks."""

    async def close(self) -> None:
        await self._tasks.close()

    @handles("image.list")
    async def list_images(self, req: Req[Empty, PageQuery]) -> Page[ImageView]:
        after = paging.decode(req.query.cursor, str, str, str)
        views = sorted(await asyncio.to_thread(self._views), key=_key)
        left = [view for view in views if after is None or _key(view) > tuple(after)]
        shown = left[: req.query.limit]
        more = len(left) > len(shown)
        return Page(items=shown, next_cursor=paging.encode(list(_key(shown[-1]))) if more else None)

    @handles("runtime.prepare")
    async def prepare(self, req: Req[PrepareBody, Empty]) -> ImageView:
        """Raises NovaError ``not_found`` for a runtime that is not here, ``runtime_unavailable`` for one without images."""
        form = _FORMS[req.body.backend]
        runtime = self._known(req.params["id"])
        found = await asyncio.to_thread(self._images.find, runtime, form)
        if found is not None:
            return self._view(found)
        self._images.launch(runtime)
        if (runtime, form) not in self._making:
            self._making.add((runtime, form))
            self._tasks.spawn(f"image of {runtime}", self._make(runtime, form))
        return self._under_way(Progress(runtime, form, self._images.digest(runtime), "building", "waiting to begin"))

    def _known(self, runtime: str) -> str:
        try:
            return self._images.runtime(runtime)
        except NovaError as error:
            raise not_found("runtime", runtime) if error.code == "validation_failed" else error from None

    async def _make(self, runtime: str, form: Form) -> None:
        progress = Progress(runtime, form, self._images.digest(runtime), "building", "")
        try:
            with self._progress.of(progress) as say:
                await self._images.build(runtime, form, say)
        except (NovaError, OSError) as error:
            refusal = error if isinstance(error, NovaError) else as_refusal(error)
            reason = refusal.detail if refusal else str(error)
            log.warning("an image could not be made", runtime=runtime, form=form, reason=reason)
            await asyncio.to_thread(self._progress.keep, replace(progress, status="failed", detail=reason))
        finally:
            self._making.discard((runtime, form))

    def _views(self) -> list[ImageView]:
        views = [self._view(image) for image in self._images.list()]
        there = {(view.runtime, view.form) for view in views if view.status == "ready"}
        under_way = [self._under_way(one) for one in self._progress.all() if (one.runtime, one.form) not in there]
        return views + under_way

    def _view(self, image: ImageFile) -> ImageView:
        return ImageView(
            runtime=image.runtime,
            version=image.version or None,
            form=image.form,
            digest=image.digest,
            status="ready" if image.digest == self._current(image.runtime) else "outdated",
            detail=None,
            size_mb=round(image.size_bytes / (1 << 20), 1),
            node=self._node,
        )

    def _current(self, runtime: str) -> str:
        try:
            return self._images.digest(runtime)
        except NovaError:  # a runtime that is not here any more
            return ""

    def _under_way(self, progress: Progress) -> ImageView:
        return ImageView(
            runtime=progress.runtime,
            version=None,
            form=progress.form,
            digest=progress.digest,
            status=progress.status,
            detail=progress.detail,
            size_mb=0,
            node=self._node,
        )


def _key(view: ImageView) -> tuple[str, str, str]:
    return view.runtime, view.form, view.digest
