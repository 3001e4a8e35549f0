"""Workers that are equally crowded keep to a processor each; nothing else is held there."""

import os
import subprocess
import threading
from collections.abc import Collection, Iterator

import pytest

from nova.execution.homes import Demands, Home

EVERYWHERE = os.sched_getaffinity(0)
HOME = {min(EVERYWHERE)}

pytestmark = pytest.mark.skipif(len(EVERYWHERE) < 2, reason="there is one processor")


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, EVERYWHERE)


class Wanting:
    """How busy this worker is said to be."""

    def __init__(self) -> None:
        self.now = 1.0

    def share(self) -> float:
        return self.now


class Placed:
    """An instance that remembers where it was put."""

    def __init__(self) -> None:
        self.processors: Collection[int] = EVERYWHERE

    def keep_to(self, processors: Collection[int]) -> None:
        self.processors = processors


class Served:
    def __init__(self, *instances: object) -> None:
        self.instances = list(instances)

    def quick_and_spread(self) -> list[object]:
        return self.instances


def crowded(*instances: object) -> tuple[Home, Demands, Wanting, Served]:
    demands, wanting, served = Demands(2), Wanting(), Served(*instances)
    demands.tell(1, 1.0)
    return Home(0, demands, served, demand=wanting), demands, wanting, served  # type: ignore[arg-type]


def test_a_crowded_worker_and_its_quick_instances_keep_to_one_processor_while_all_are_crowded() -> None:
    first, second = Placed(), Placed()
    home, demands, wanting, served = crowded(first, object())
    home.look()
    assert os.sched_getaffinity(0) == first.processors == HOME
    served.instances = [second]
    home.look()
    assert (first.processors, second.processors) == (EVERYWHERE, HOME)
    demands.tell(1, 0.5)
    home.look()
    assert home.settled
    demands.tell(1, 0.1)
    home.look()
    assert os.sched_getaffinity(0) == second.processors == EVERYWHERE
    demands.tell(1, 0.5)
    home.look()
    assert not home.settled
    demands.tell(1, 1.0)
    home.look()
    assert home.settled
    wanting.now = 0.1
    home.look()
    assert not home.settled


def test_who_is_bound_by_somebody_else_stays_bound() -> None:
    """``taskset``, a control group: this is not ours to undo."""
    instance = Placed()
    home, _, wanting, _ = crowded(instance)
    elsewhere = {max(EVERYWHERE)}
    os.sched_setaffinity(0, elsewhere)
    home.look()
    assert os.sched_getaffinity(0) == elsewhere
    assert (home.settled, instance.processors) == (False, EVERYWHERE)
    os.sched_setaffinity(0, EVERYWHERE)
    home.look()
    assert home.settled
    os.sched_setaffinity(0, elsewhere)
    home.look()
    assert os.sched_getaffinity(0) == instance.processors == elsewhere
    wanting.now = 0.0
    home.look()
    assert os.sched_getaffinity(0) == elsewhere


def test_who_serves_no_quick_function_stays_free() -> None:
    home, *_ = crowded()
    home.look()
    assert os.sched_getaffinity(0) == EVERYWHERE


def test_what_is_begun_meanwhile_is_let_go() -> None:
    """Threads and processes inherit where their maker may run."""
    home, *_ = crowded(Placed())
    home.look()
    went = threading.Event()
    thread = threading.Thread(target=went.wait)
    thread.start()
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        try:
            assert shell.stdout is not None
            shell.stdout.readline()
            with open(f"/proc/{shell.pid}/task/{shell.pid}/children") as file:
                sleeper = int(file.read())
            assert thread.native_id is not None
            begun = (thread.native_id, shell.pid, sleeper)
            assert [os.sched_getaffinity(one) for one in begun] == [HOME] * 3
            home.look()
            assert [os.sched_getaffinity(one) for one in begun] == [EVERYWHERE] * 3
            assert os.sched_getaffinity(0) == HOME
        finally:
            os.killpg(shell.pid, 9)
            went.set()
            thread.join()


def test_only_as_many_workers_as_processors_have_homes() -> None:
    assert Home.fits(Demands(len(EVERYWHERE)))
    assert not Home.fits(Demands(len(EVERYWHERE) + 1))
    assert not Home.fits(Demands(1))
