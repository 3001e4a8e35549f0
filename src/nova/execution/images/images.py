"""The images of this node: one folder each, found by what they are made of."""

import asyncio
import contextlib
import fcntl
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nova.agent.config import WorkerLaunch
from nova.errors import NovaError
from nova.execution.images import apart, packing, tree
from nova.execution.images.recipe import Recipe, host_suite
from nova.runtimes.registry import Runtimes

Form = Literal["tar", "ext4"]
FORMS: Final[tuple[Form, ...]] = ("tar", "ext4")
_ALIASES: Final = {"base": "custom"}
"""``base`` is the image that holds no language but the agent's."""
_ABOUT: Final = "image.json"
_NEW_S: Final = 1.0
"""A folder so young may not have been locked yet by who made it."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """``digest`` stands for what it was made of; ``version`` is the language inside, like ``3.11``, or empty."""

    runtime: str
    version: str
    digest: str
    path: Path
    form: Form
    size_bytes: int


class Images:
    """Images below ``folder``, which is made when the first one is. Any number of processes may share it."""

    def __init__(self, folder: Path, runtimes: Runtimes) -> None:
        self.folder = folder
        self._runtimes = runtimes
        self._recipes: dict[str, Recipe | None] = {}
        self._looking_up = threading.Lock()

    def recipe(self, runtime: str) -> Recipe | None:
        """None when this runtime has none. Raises NovaError for unknown runtimes and toolchains that are missing."""
        runtime = _ALIASES.get(runtime, runtime)
        with self._looking_up:
            if runtime not in self._recipes:
                resolved = self._runtimes.resolve(runtime)
                section = resolved.manifest.image
                self._recipes[runtime] = Recipe(resolved, section, host_suite()) if section else None
            return self._recipes[runtime]

    def digest(self, runtime: str) -> str:
        """12 hex digits for what the image of a runtime is made of as of now; empty when it has no recipe."""
        recipe = self.recipe(runtime)
        return recipe.digest if recipe else ""

    def launch(self, runtime: str) -> WorkerLaunch:
        """How its workers start inside. Raises NovaError ``runtime_unavailable`` when there can be no image."""
        return self._require(runtime).launch()

    def find(self, runtime: str, form: Form) -> ImageFile | None:
        """The image of what this host would build now; one of older parts is none."""
        recipe = self.recipe(runtime)
        return self._read(self._place(recipe), form) if recipe else None

    def require(self, runtime: str, form: Form) -> ImageFile:
        """As :meth:`find`; raises NovaError ``runtime_unavailable`` with the command that makes what is missing."""
        recipe = self._require(runtime)
        found = self._read(self._place(recipe), form)
        if found is None:
            command = f"nova runtime build {recipe.resolved.runtime} --form {form}"
            text = f"runtime {runtime!r} has no {form} image on this node; make it with: {command}"
            raise NovaError("runtime_unavailable", text)
        if found.version != recipe.resolved.version:
            text = (
                f"the image of {runtime!r} has version {found.version}, this node builds for {recipe.resolved.version}"
            )
            raise NovaError("runtime_unavailable", text)
        return found

    def list(self) -> Sequence[ImageFile]:
        """Every image that is there, also those of older parts, by runtime and form."""
        places = self.folder.glob(f"[!.]*/{_ABOUT}")
        found = (self._read(place.parent, form) for place in sorted(places) for form in FORMS)
        return [image for image in found if image is not None]

    def clean(self) -> Sequence[Path]:
        """Remove the images of runtimes that are here which are made of other parts than they would be now."""
        removed = []
        for folder, image in {image.path.parent: image for image in self.list()}.items():
            with self._alone(f"image-{image.runtime}", lambda _step: None):
                if image.digest != self.digest(image.runtime) and folder.exists():
                    packing.remove(folder)
                    removed.append(folder)
        return removed

    def runtime(self, name: str) -> str:
        """The runtime that an id means. Raises NovaError ``validation_failed``."""
        return self._runtimes.get(name).id

    async def build(self, runtime: str, form: Form, say: Callable[[str], None]) -> ImageFile:
        """Make it unless it is there, in a process of its own. ``say`` is called with each step.

        Raises NovaError ``runtime_unavailable`` when there can be none, ``dependency_unavailable`` when a program is missing
        or packages cannot be had. Cancelled, the process and what it started are killed; the next build removes the rest.
        """
        if found := await asyncio.to_thread(self.find, runtime, form):
            return found
        recipe = self._require(runtime)
        await apart.build(self.folder, recipe.resolved.runtime, form, say)
        return await asyncio.to_thread(self.require, runtime, form)

    def build_now(self, runtime: str, form: Form, say: Callable[[str], None]) -> ImageFile:
        """As :meth:`build`, here. Blocking."""
        recipe = self._require(runtime)
        with self._alone(f"image-{recipe.resolved.runtime}", say):
            if found := self.find(runtime, form):
                return found
            self._make(recipe, form, say)
        built = self.require(runtime, form)
        say(f"{form} image of {built.runtime} {built.version}, {built.size_bytes >> 20} MB: {built.path}")
        return built

    def _make(self, recipe: Recipe, form: Form, say: Callable[[str], None]) -> None:
        stem = self._stem(recipe, say)
        place = self._place(recipe)
        place.mkdir(parents=True, exist_ok=True)
        with self._workshop() as work:
            root = work / "root"
            tree.unpack(stem, root)
            version = tree.add_runtime(root, recipe, say)
            say(f"writing the {form} form")
            file = work / f"rootfs.{form}"
            if form == "tar":
                packing.pack_tar(root, file)
            else:
                packing.pack_ext4(root, file, f"nova-{recipe.resolved.runtime}")
            about = {
                "runtime": recipe.resolved.runtime,
                "version": version,
                "digest": recipe.digest,
                "suite": recipe.suite,
            }
            (work / _ABOUT).write_text(json.dumps(about, indent=1))
            for path in (file, work / _ABOUT):
                path.chmod(0o644)
                path.rename(place / path.name)

    def _stem(self, recipe: Recipe, say: Callable[[str], None]) -> Path:
        """The packages that images share, made once."""
        stem = self.folder / "stems" / f"{recipe.stem_digest}.tar"
        with self._alone(f"stem-{recipe.stem_digest}", say):
            if not stem.exists():
                stem.parent.mkdir(parents=True, exist_ok=True)
                with self._workshop() as work:
                    tree.make_stem(work / "root", recipe.packages, recipe.suite, say)
                    packing.pack_tar(work / "root", work / "stem.tar")
                    (work / "stem.tar").rename(stem)
        return stem

    def _require(self, runtime: str) -> Recipe:
        recipe = self.recipe(runtime)
        if recipe is None:
            raise NovaError("runtime_unavailable", f"runtime {runtime!r} has no image recipe")
        return recipe

    def _place(self, recipe: Recipe) -> Path:
        return self.folder / f"{recipe.resolved.runtime}-{recipe.digest}"

    def _read(self, place: Path, form: Form) -> ImageFile | None:
        path = place / f"rootfs.{form}"
        try:
            about = json.loads((place / _ABOUT).read_text())
            size = path.stat().st_blocks * 512
        except FileNotFoundError:
            return None
        return ImageFile(about["runtime"], about["version"], about["digest"], path, form, size)

    @contextlib.contextmanager
    def _alone(self, name: str, say: Callable[[str], None]) -> Iterator[None]:
        """One process of this node at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f".{name}.lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another process that makes the same")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _workshop(self) -> Iterator[Path]:
        """A folder beside the images, so that what is made there can be renamed into place."""
        self._forget_the_killed()
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
        held = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(
                held, fcntl.LOCK_EX
            )  # the kernel's: it ends with this process, also seen from another container
            yield work
        finally:
            packing.remove(work)
            os.close(held)

    def _forget_the_killed(self) -> None:
        """What processes left that were killed while they made an image."""
        for work in self.folder.glob(".making-*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                if time.time() - work.stat().st_mtime > _NEW_S and _let_go(work):
                    packing.remove(work)


def _let_go(folder: Path) -> bool:
    """Raises BlockingIOError when a process has it."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(held)
    return True
