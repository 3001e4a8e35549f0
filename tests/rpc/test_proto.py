"""The generated code is that of the definitions, and every part of them has a comment where one is needed."""

import subprocess
import sys
from pathlib import Path

from nova.rpc import nova_pb2 as pb

ROOT = Path(__file__).parents[2]


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "proto.sh"
    done = subprocess.run(
        [script, tmp_path], env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    for name in ("nova_pb2.py", "nova_pb2.pyi"):
        made, committed = tmp_path / "nova" / "rpc" / name, ROOT / "src" / "nova" / "rpc" / name
        assert made.read_text() == committed.read_text(), "run scripts/proto.sh"


def test_every_rpc_says_what_it_does() -> None:
    lines = (ROOT / "src" / "nova" / "rpc" / "nova.proto").read_text().splitlines()
    rpcs = [number for number, line in enumerate(lines) if line.strip().startswith("rpc ")]
    assert len(rpcs) == len(pb.DESCRIPTOR.services_by_name["Execution"].methods)
    for number in rpcs:
        assert lines[number - 1].strip().startswith("// "), lines[number]
