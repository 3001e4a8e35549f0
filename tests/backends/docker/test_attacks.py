"""The sandbox's attacks against a container: what holds a limit differs, what comes of it does not."""

import json
import textwrap
from dataclasses import replace
from typing import Any

import pytest

from tests.backends.harness import Function, Maker
from tests.execution.backends.sandbox.attacks import ATTACKS, SOURCE, Attack

pytestmark = [pytest.mark.anyio, pytest.mark.root]

_DEADLY = ("child", "memory_file", "files_in_tmp", "threads")
_HARMLESS = ("network", "elsewhere", "higher_limits", "sparse_file", "prints", "inodes", "descriptors")


@pytest.fixture(scope="module")
def attacker(maker: Maker) -> Maker:
    return replace(maker, code=maker.case.artifact(textwrap.dedent(SOURCE), maker.folder))


def named(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


async def outcome(function: Function, attack: Attack) -> Any:
    result = await function.answer(attack.name, timeout_s=attack.timeout_s)
    if result.error is not None:
        return f"error {result.error.type}"
    value = json.loads(result.output or b"null")
    return [value, len(result.stdout), len(result.stderr)] if attack.name == "prints" else value


@pytest.mark.parametrize("name", _DEADLY)
async def test_those_that_end_the_container(attacker: Maker, name: str) -> None:
    """BE4: memory is the container's as a whole, whoever in it takes it and however; so are processes."""
    attack = named(name)
    function = await attacker.load(attacker.spec(attack.limits))
    seen = await outcome(function, attack)
    await function.stop()
    # where the kernel picks one process (cgroup v1), a parent may tell of its child's death before the container is ended
    assert attack.expects(True, seen) or (name == "child" and seen == -9), seen


async def test_those_that_it_outlives(attacker: Maker) -> None:
    """BE5: one container that tries them one after the other."""
    function = await attacker.load(attacker.spec(named("elsewhere").limits))
    seen = {name: await outcome(function, named(name)) for name in _HARMLESS}
    await function.stop()
    assert {name: came for name, came in seen.items() if not named(name).expects(True, came)} == {}
