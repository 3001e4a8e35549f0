"""When code needs a build before it can run, and what identifies the result."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nova.errors import invalid

Installer = Literal["pip", "npm", "wasmtime"]
BuildStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED: frozenset[BuildStatus] = frozenset({"succeeded", "failed", "cancelled"})

INSTALLERS: Mapping[str, Installer] = {"python": "pip", "node": "npm", "wasm": "wasmtime"}
"""By runtime: what installs its dependencies, or compiles it. Others need neither."""
MANIFESTS: Mapping[str, tuple[str, ...]] = {
    "python": ("requirements.txt",),
    "node": ("package.json", "package-lock.json"),
    "wasm": (),
}
"""By runtime: the files at the top of the source tree that name dependencies, the deciding one first."""

_RECIPE = "1"
"""Changes when the same inputs are built in another way."""
_COMMENT = re.compile(r"(^|\s)#.*$")
_NPM_FIELDS = ("dependencies", "optionalDependencies", "peerDependencies")


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What has to be done to a source tree.

    ``manifest`` is the file that asked for it, empty where the code always has to be built; ``locked`` whether a lock file
    pins what is installed; ``target`` the folder of the artifact, relative to its top, that the installer fills.
    """

    installer: Installer
    manifest: str
    locked: bool
    target: str


def plan(runtime: str, files: Mapping[str, bytes]) -> BuildPlan | None:
    """The build that ``files`` (path → content; only :data:`MANIFESTS` matter) need under ``runtime``, or None.

    ``runtime`` may carry a version (``python3.11``). Raises ``validation_failed`` for a manifest that cannot be read.
    """
    family = runtime.rstrip("0123456789.")
    if family == "python" and _requirements(files.get("requirements.txt", b"")):
        return BuildPlan("pip", "requirements.txt", locked=False, target="deps")
    if family == "node" and _npm_dependencies(files.get("package.json")):
        return BuildPlan("npm", "package.json", locked="package-lock.json" in files, target="node_modules")
    if family == "wasm":
        return BuildPlan("wasmtime", "", locked=True, target=".nova")
    return None


def cache_key(*, runtime: str, code_hash: str, entry: str, toolchain: str, arch: str) -> str:
    """``sha256:…`` over everything that decides what a build makes. ``code_hash`` covers sources and manifests.

    ``toolchain`` names the versions of interpreter and installer.
    """
    parts = (_RECIPE, runtime, code_hash, entry, toolchain, arch)
    framed = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return "sha256:" + hashlib.sha256(framed).hexdigest()


def _requirements(content: bytes) -> bool:
    """Does any line of a requirements file ask for something?"""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise invalid("requirements.txt", "is not UTF-8 text") from None
    return any(_COMMENT.sub("", line).strip() for line in text.splitlines())


def _npm_dependencies(content: bytes | None) -> bool:
    if content is None:
        return False
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        raise invalid("package.json", "is not valid JSON") from None
    if not isinstance(manifest, dict):
        raise invalid("package.json", "is not a JSON object")
    return any(manifest.get(name) for name in _NPM_FIELDS)
