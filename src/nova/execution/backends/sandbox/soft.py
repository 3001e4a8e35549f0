"""Limits and figures where no control group can be made: per process, on everything below an instance's first one.

Guest-side code: standard library only.
"""

import os
import resource

from nova.execution.backends.sandbox.cgroups import Usage


def limit(pid: int, memory_bytes: int, pids: int) -> None:
    """Where no control group can be made: limits per process, on the first process and what it has started."""
    for member in _family(pid):
        resource.prlimit(member, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        resource.prlimit(member, resource.RLIMIT_NPROC, (pids, pids))


def _family(pid: int) -> list[int]:
    """``pid`` and everything below it. In its namespace nothing is elsewhere: orphans become children of ``pid``."""
    found = [pid]
    for member in found:
        try:
            with open(f"/proc/{member}/task/{member}/children") as file:
                found += map(int, file.read().split())
        except FileNotFoundError:
            continue
    return found


def usage(pid: int) -> Usage:
    """What control groups would tell, added up; shared memory counts once per process."""
    memory = ticks = count = 0
    for member in _family(pid):
        try:
            with open(f"/proc/{member}/statm") as file:
                memory += int(file.read().split()[1]) * resource.getpagesize()
            with open(f"/proc/{member}/stat") as file:
                ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
        except FileNotFoundError:
            continue
        count += 1
    return Usage(memory, ticks * 1_000_000 // os.sysconf("SC_CLK_TCK"), count)
