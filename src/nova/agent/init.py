"""First process of a machine: mounts what it needs, starts the agent without privileges, and switches the machine off.

From the kernel's command line:

=====================  ===============================================================================================
nova.token_sha256      digest of the host's token, hexadecimal
nova.instance_id       the instance's name
nova.listen            ``vsock:PORT``, ``serial:PATH`` or ``tcp:PORT``; the host comes through a relay
nova.tmp_mb            size of ``/tmp``; default 64
nova.memory_mb         memory of the workers together; default: what the machine has
nova.pids              processes at once; default 256
nova.mounts            further drives: ``vdc:/layers/0:ro,vdd:/mnt/data:rw``
nova.template          with it the machine is booted for nobody: it mounts no drives until it goes on from a snapshot
reboot                 with it the machine ends by a restart (Firecracker), else by switching power off
=====================  ===============================================================================================

``/dev/vdb``, when there is one, is the code: read-only at ``/code``. The kernel sets the address (``ip=``).
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

from nova.agent import machine, preload, privileges
from nova.agent.entry import BadEntry, Entry, describe, listen_at
from nova.agent.messages import ThawHead
from nova.agent.outpost import Outpost

UID: Final = 65534
"""Workers and their agent."""
RELOAD_DIR: Final = "/run/nova/reload"


def main() -> NoReturn:
    """Never returns."""
    words: Mapping[str, str] = {}
    try:
        os.environ.clear()
        machine.mount_basics()
        words = command_line()
        _serve(words)
    except (BadEntry, OSError, ValueError) as error:
        print(f"nova agent: {error}", file=sys.stderr, flush=True)
    finally:
        machine.end(restart="reboot" in words)


def command_line(path: str = "/proc/cmdline") -> dict[str, str]:
    """The words of the kernel's command line, ``nova.`` left out of their names."""
    with open(path) as file:
        pairs = (word.partition("=") for word in file.read().split())
        return {name.removeprefix("nova."): value for name, _, value in pairs}


def _serve(words: Mapping[str, str]) -> None:
    entry = Entry.of(words)
    config = entry.config(describe(), relayed=True, reload_dir=RELOAD_DIR)
    config = dataclasses.replace(config, blank="template" in words)
    machine.mount_rest(int(words.get("tmp_mb", "64")), UID, RELOAD_DIR)
    if not config.blank:
        machine.mount_drives(words.get("mounts", ""), UID)
    machine.loopback_up()
    group = machine.limit(int(words.get("memory_mb", "0")), int(words.get("pids", "256")))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    preload.warm_up([config.worker.module] if config.worker.kind == "fork" else [])

    def become() -> None:
        if group:
            machine.join(group)
        os.setsid()
        privileges.drop(UID)

    def awaken(thaw: ThawHead) -> None:
        machine.awaken(thaw)
        if thaw.place is not None:
            machine.furnish(thaw.place, group, UID)

    kind, _, where = entry.listen.partition(":")
    if kind == "serial":
        outpost = Outpost(config, None, machine.wait_for_port(where), become=become, awaken=awaken)
    else:
        outpost = Outpost(config, listen_at(entry.listen), become=become, awaken=awaken)
    outpost.run()
