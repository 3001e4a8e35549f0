"""What a kept machine is not gone on from: anything that differs has another fingerprint."""

from dataclasses import replace
from pathlib import Path

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.execution.backends.base import InstanceSpec, LayerMount
from nova.execution.backends.vm import fingerprint
from nova.execution.backends.vm.fingerprint import function_fingerprint
from nova.execution.backends.vm.shape import Shape
from nova.execution.images import ImageFile

OFFLINE = NetworkPolicy(isolation_mode="strict")


def test_whatever_a_machine_is_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BE9."""
    files = {name: tmp_path / name for name in ("program", "kernel", "initrd")}
    root = tmp_path / "rootfs.ext4"
    for path in (*files.values(), root):
        path.write_text(path.name)
    image = ImageFile("python", "3.11", "0" * 12, root, "ext4", 1)
    spec = InstanceSpec("i", "python", "3.11", tmp_path, Limits(memory_mb=32), NetworkPolicy())
    layer = LayerMount(tmp_path, "/layers/0")

    def print_of(image: ImageFile = image, spec: InstanceSpec = spec, option: int = 0) -> str:
        return fingerprint.fingerprint(files, {"option": option}, image, Shape.of(spec))

    prints = [
        print_of(),
        print_of(option=1),
        print_of(replace(image, digest="1" * 12)),
        print_of(spec=replace(spec, limits=Limits(memory_mb=64))),
        print_of(spec=replace(spec, limits=Limits(memory_mb=32, vcpus=2))),
        print_of(spec=replace(spec, network=OFFLINE)),
        print_of(spec=replace(spec, layers=(layer,))),
    ]
    for path in (*files.values(), root):
        path.write_text("another")
        prints.append(print_of())
    monkeypatch.setattr(fingerprint, "processor", lambda: "another")
    prints.append(print_of())
    assert len(set(prints)) == len(prints)
    assert print_of(spec=replace(spec, instance_id="another", code=None)) == prints[-1], "templates are anybody's"


def test_whatever_a_loaded_function_has(tmp_path: Path) -> None:
    """BE9: two functions on the same machine are never taken for each other."""
    spec = InstanceSpec("i", "python", "3.11", tmp_path, Limits(memory_mb=32), NetworkPolicy())
    layers = [(LayerMount(tmp_path, target),) for target in ("/layers/0", "/layers/1")]
    prints = [
        function_fingerprint("a", spec),
        function_fingerprint("b", spec),
        function_fingerprint("a", replace(spec, code=tmp_path / "other")),
        function_fingerprint("a", replace(spec, limits=Limits(memory_mb=32, tmp_mb=1))),
        *(function_fingerprint("a", replace(spec, layers=one)) for one in layers),
    ]
    assert len(set(prints)) == len(prints)
    assert function_fingerprint("a", replace(spec, instance_id="another")) == prints[0]
