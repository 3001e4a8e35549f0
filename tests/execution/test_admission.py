"""How much the machine carries, as its files say."""

from pathlib import Path

from nova.execution.admission import NodeMemory


def meminfo(folder: Path, total_mb: int, available_mb: int) -> Path:
    file = folder / "meminfo"
    file.write_text(f"MemTotal:  {total_mb << 10} kB\nMemFree:  1 kB\nMemAvailable:  {available_mb << 10} kB\n")
    return file


def test_capacity_grows_with_memory_and_is_never_tiny(tmp_path: Path) -> None:
    assert NodeMemory(meminfo(tmp_path, 1024, 900)).capacity() == 64
    assert NodeMemory(meminfo(tmp_path, 64, 60)).capacity() == 16


def test_below_a_tenth_there_is_no_room(tmp_path: Path) -> None:
    memory = NodeMemory(meminfo(tmp_path, 1000, 101))
    assert not memory.low(0.0)
    meminfo(tmp_path, 1000, 99)
    memory.look(0.1)
    assert not memory.low(1.9), "measured a moment ago"
    memory.look(1.9)
    assert memory.low(1.9)
    meminfo(tmp_path, 1000, 101)
    assert not memory.low(2.2), "who has to wait for it is told soon"
    meminfo(tmp_path, 1000, 99)
    assert memory.low(4.3), "nobody has looked for a while"
