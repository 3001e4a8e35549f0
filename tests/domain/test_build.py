import json

import pytest

from nova.domain.build import BuildPlan, cache_key, plan
from nova.errors import NovaError

PIP = BuildPlan("pip", "requirements.txt", locked=False, target="deps")
NPM = BuildPlan("npm", "package.json", locked=False, target="node_modules")


@pytest.mark.parametrize(
    ("runtime", "files", "expected"),
    [
        ("python", {"main.py": b""}, None),
        ("python", {"requirements.txt": b"pillow\n"}, PIP),
        ("python3.11", {"requirements.txt": b"\xef\xbb\xbf\n# nothing\npillow==11 # pinned\n"}, PIP),
        ("python", {"requirements.txt": b"# nothing\n\n   # really\n"}, None),
        ("python", {"package.json": b'{"dependencies": {"a": "1"}}'}, None),
        ("node", {"package.json": b'{"dependencies": {"a": "1"}}'}, NPM),
        ("node20", {"package.json": b'{"optionalDependencies": {"a": "1"}}'}, NPM),
        ("node", {"package.json": b'{"devDependencies": {"a": "1"}, "dependencies": {}}'}, None),
        ("node", {"package.json": b'{"type": "module"}'}, None),
        ("node", {"requirements.txt": b"pillow"}, None),
        ("wasm", {"handler.wasm": b""}, BuildPlan("wasmtime", "", locked=True, target=".nova")),
        ("wasm50.0", {}, BuildPlan("wasmtime", "", locked=True, target=".nova")),
        ("custom", {"requirements.txt": b"pillow", "package.json": b'{"dependencies": {"a": "1"}}'}, None),
    ],
)
def test_when_a_build_is_needed(runtime: str, files: dict[str, bytes], expected: BuildPlan | None) -> None:
    assert plan(runtime, files) == expected


def test_a_lock_file_pins() -> None:
    found = plan(
        "node", {"package.json": json.dumps({"dependencies": {"a": "1"}}).encode(), "package-lock.json": b"{}"}
    )
    assert found is not None
    assert found.locked


@pytest.mark.parametrize(
    ("runtime", "name", "content"),
    [
        ("node", "package.json", b"{"),
        ("node", "package.json", b"[]"),
        ("node", "package.json", b"[" * 100_000),
        ("python", "requirements.txt", b"\xff\xfe"),
    ],
)
def test_an_unreadable_manifest_is_refused_by_name(runtime: str, name: str, content: bytes) -> None:
    with pytest.raises(NovaError) as refused:
        plan(runtime, {name: content})
    assert refused.value.errors[0].field == name


def test_every_part_changes_the_cache_key() -> None:
    """BU6: parts cannot run into each other."""
    base = {"runtime": "python", "code_hash": "sha256:aa", "entry": "main.py", "toolchain": "pip 1", "arch": "x86_64"}
    keys = {cache_key(**base)} | {cache_key(**{**base, name: value + "b"}) for name, value in base.items()}
    keys.add(cache_key(**{**base, "entry": "main.pyp", "toolchain": "ip 1"}))
    assert len(keys) == 7
    assert all(len(key) == len("sha256:") + 64 for key in keys)
