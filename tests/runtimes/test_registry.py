"""Which runtimes there are, under which ids, and what they need from the host."""

import shutil
import sys
from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.execution.launch import launch_for
from nova.runtimes import registry, toolchains
from nova.runtimes.manifest import Manifest, ToolchainSection, load
from nova.runtimes.registry import Runtimes
from nova.runtimes.toolchains import ToolchainMissing

RUNTIMES = Runtimes()
FOLDERS = sorted(file.parent for file in Path(registry.__file__).parent.glob("*/runtime.toml"))


def manifest(name: str) -> Manifest:
    return RUNTIMES.get(name).manifest


def test_the_ids_of_a_runtime_are_its_real_version() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("python", f"python{version}", "python3"):
        resolved = RUNTIMES.resolve(name)
        assert (resolved.runtime, resolved.version) == ("python", version)
    node = RUNTIMES.resolve("node")
    assert RUNTIMES.resolve(f"node{node.version.split('.')[0]}") == node
    assert RUNTIMES.resolve(f"nodejs{node.version.split('.')[0]}.x") == node
    assert RUNTIMES.resolve("custom").toolchain.program is None


@pytest.mark.parametrize("name", ["python2.7", "python3.99", "node4", "", "Python", "custom1", "cobol", "../python"])
def test_other_ids_are_refused_with_what_exists(name: str) -> None:
    with pytest.raises(NovaError) as caught:
        RUNTIMES.resolve(name)
    assert caught.value.code == "validation_failed"
    assert "python3.11" in caught.value.detail or "python3" in caught.value.detail
    assert caught.value.errors[0].field == "runtime"


def test_a_runtime_without_toolchain_is_listed_and_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(section: ToolchainSection) -> toolchains.Toolchain:
        if section.finder == "program":
            raise ToolchainMissing("nothing there")
        return toolchains.Toolchain(None, "")

    monkeypatch.setattr(toolchains, "find", missing)
    runtimes = Runtimes()
    assert {runtime.id for runtime in runtimes.list()} >= {"python", "node", "custom"}
    assert runtimes.get("node").reason == "nothing there"
    with pytest.raises(NovaError) as caught:
        runtimes.resolve("node")
    assert caught.value.code == "runtime_unavailable"
    assert "nothing there" in caught.value.detail


def test_toolchains_are_real_programs() -> None:
    """A shim that starts another program would cost every cold start its time."""
    for name in ("python", "node"):
        program = RUNTIMES.resolve(name).toolchain.program
        assert program is not None
        assert program.is_absolute()
        assert program == program.resolve()
        with open(program, "rb") as file:
            assert file.read(4) == b"\x7fELF"


def test_a_shim_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "node"
    shim.write_text("#!/bin/sh\nexec node\n")
    shim.chmod(0o755)
    section = manifest("node").toolchain.model_copy(update={"package": "no_such_package"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainMissing, match="is a script that starts another program"):
        toolchains.find(section)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ToolchainMissing, match="node is not on PATH and no_such_package is not installed"):
        toolchains.find(section)


def test_a_program_outside_the_system_brings_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = RUNTIMES.resolve("node").toolchain.program
    assert program is not None
    (tmp_path / "bin").mkdir()
    shutil.copy(program, tmp_path / "bin" / "node")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = toolchains.find(manifest("node").toolchain)
    assert found.program == tmp_path / "bin" / "node"
    assert found.host_paths == (tmp_path,)
    with pytest.raises(ToolchainMissing, match="at least 999 is needed"):
        toolchains.find(manifest("node").toolchain.model_copy(update={"minimum": "999", "package": "no_such_package"}))


def test_a_package_runs_on_the_platforms_own_interpreter() -> None:
    section = manifest("wasm").toolchain
    found = toolchains.find(section)
    assert found.program == RUNTIMES.resolve("python").toolchain.program
    assert found.package is not None
    assert (found.package / "__init__.py").is_file()
    assert found.package in found.host_paths
    for update, reason in (
        ({"minimum": "999"}, "wasmtime is version .*; at least 999 is needed"),
        ({"package": "no_such_package"}, "the Python package no_such_package is not installed"),
    ):
        with pytest.raises(ToolchainMissing, match=reason):
            toolchains.find(section.model_copy(update=update))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_manifest_is_complete(folder: Path) -> None:
    found = load(folder)
    assert found.id == folder.name
    assert found.accepts_handler(found.default_handler)
    entry = found.inline_name(found.default_handler)
    assert entry in found.entry_candidates
    assert found.entry_kind(found.template, found.default_handler, entry) == "handler"
    resolved = RUNTIMES.resolve(found.id)
    words = [*launch_for(resolved).argv, *launch_for(resolved).script]
    assert not [word for word in words if "{" in word and word not in ("{entry}", "{input}")]
    assert all(path.exists() for path in resolved.host_paths)


def test_unknown_keys_of_a_manifest_are_errors(tmp_path: Path) -> None:
    (tmp_path / "runtime.toml").write_text(
        (FOLDERS[0] / "runtime.toml").read_text().replace("id =", "idd = 1\nid =", 1)
    )
    with pytest.raises(ValueError, match="idd"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("python", ["main.handler", "pkg.mod.fn", "main.App.go", "src/m.run"], ["handler", "a..b", "1.x", "a.b.", "a.\n"]),
        ("node", ["index.handler", "src/app.run", "a-b.$x"], ["index", "../x.y", "/abs.x", "a b.c", "x.", "a/../b.c"]),
        ("custom", ["bootstrap", "bin/run.sh"], ["../x", "/bin/sh", "a b", "", "bin/"]),
    ],
)  # fmt: skip
def test_the_form_of_handlers(name: str, good: list[str], bad: list[str]) -> None:
    assert [handler for handler in good if not manifest(name).accepts_handler(handler)] == []
    assert [handler for handler in bad if manifest(name).accepts_handler(handler)] == []


@pytest.mark.parametrize(
    ("name", "handler", "files", "entry"),
    [
        ("python", "main.handler", ["main.py", "util.py"], "main.py"),
        ("python", "pkg.mod.fn", ["pkg/__init__.py", "pkg/mod.py"], "pkg/mod.py"),
        ("python", "pkg.fn", ["pkg/__init__.py"], "pkg/__init__.py"),
        ("python", "main.App.go", ["main.py"], "main.py"),
        ("python", "src/main.run", ["src/main.py"], "src/main.py"),
        ("python", "main.handler", ["other.py"], None),
        ("node", "index.handler", ["index.mjs", "package.json"], "index.mjs"),
        ("node", "src/app.run", ["src/app.js", "app.js"], "src/app.js"),
        ("custom", "bin/run", ["bin/run"], "bin/run"),
    ],
)
def test_the_entry_file_of_a_handler(name: str, handler: str, files: list[str], entry: str | None) -> None:
    assert manifest(name).find_entry(files, handler) == entry


@pytest.mark.parametrize(
    ("name", "handler", "entry", "source", "kind"),
    [
        ("python", "main.handler", "main.py", "def handler(e, c): pass", "handler"),
        ("python", "main.handler", "main.py", "import x\n\nasync def handler(e): pass", "handler"),
        ("python", "main.handler", "main.py", "handler = Mangum(app)", "handler"),
        ("python", "main.handler", "main.py", "from app import handler", "handler"),
        ("python", "main.handler", "main.py", "from app import (\n    handler,\n)", "handler"),
        ("python", "main.App.go", "main.py", "class App:\n    def go(self): pass", "handler"),
        ("python", "main.handler", "main.py", "print(open(sys.argv[1]).read())", "script"),
        ("python", "main.handler", "main.py", "# def handler\nprint(1)", "script"),
        ("python", "main.handler", "main.py", "def handler_of(x): pass", "script"),
        ("python", "pkg.mod.fn", "pkg/mod.py", "def fn(): pass", "handler"),
        ("node", "index.handler", "index.js", "exports.handler = () => 1", "handler"),
        ("node", "index.handler", "index.js", "module.exports = { handler }", "handler"),
        ("node", "index.handler", "index.mjs", "export const handler = async () => 1", "handler"),
        ("node", "index.handler", "index.mjs", "export default async () => 1", "handler"),
        ("node", "index.handler", "index.mjs", "const handler = 1;\nexport { x, handler };", "handler"),
        ("node", "index.handler", "index.js", "console.log(process.argv[2])", "script"),
        ("custom", "bootstrap", "bootstrap", "#!/bin/sh\n", "handler"),
    ],
)
def test_a_file_that_defines_its_handler_is_told_from_a_script(
    name: str, handler: str, entry: str, source: str, kind: str
) -> None:
    assert manifest(name).entry_kind(source, handler, entry) == kind
