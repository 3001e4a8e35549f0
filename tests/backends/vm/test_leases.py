"""The host's table of numbers: two daemons never have the same one."""

import subprocess
import sys
from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.execution.backends.vm.leases import Leases

TAKER = """
import sys
from pathlib import Path
from nova.execution.backends.vm.leases import Leases
leases = Leases(Path(sys.argv[1]), sys.argv[2])
print(*[leases.take("cid", 3, 1000) for _ in range(50)])
"""


def test_processes_that_take_at_once_get_different_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path)]
    takers = [subprocess.Popen([*command, node], stdout=subprocess.PIPE, text=True) for node in ("a", "b", "c")]
    taken = [number for taker in takers for number in taker.communicate(timeout=30)[0].split()]
    assert len(set(taken)) == len(taken) == 150


def test_a_node_gives_back_its_own_and_nothing_else(tmp_path: Path) -> None:
    """BE2."""
    ours, theirs = Leases(tmp_path, "a"), Leases(tmp_path, "b")
    assert [ours.take("address", 2, 9), theirs.take("address", 2, 9), ours.take("cid", 3, 9)] == [2, 3, 3]
    ours.release("address", 3)
    assert theirs.held("address") == [3]
    assert Leases(tmp_path, "a").release_all() == ["address 2", "cid 3"]
    assert ours.held("address") == []
    assert theirs.held("address") == [3]


def test_who_leaves_last_removes_what_was_shared(tmp_path: Path) -> None:
    ours, theirs = Leases(tmp_path, "a"), Leases(tmp_path, "b")
    with ours.joining("bridge") as one:
        pass
    with theirs.joining("bridge") as other:
        pass
    with pytest.raises(OSError, match="no bridge"), ours.joining("bridge"):
        raise OSError("no bridge")
    with ours.leaving("bridge", one) as last:
        assert not last
    with theirs.leaving("bridge", other) as last:
        assert last


def test_a_full_range_is_refused(tmp_path: Path) -> None:
    leases = Leases(tmp_path, "a")
    assert [leases.take("uid", 5, 6), leases.take("uid", 5, 6)] == [5, 6]
    with pytest.raises(NovaError, match="every uid from 5 to 6 is in use") as refused:
        leases.take("uid", 5, 6)
    assert refused.value.code == "capacity"
    leases.release("uid", 5)
    assert leases.take("uid", 5, 6) == 5
