"""Making a zygote's children cheap: everything they need is imported, has run once, and is out of the collector's way."""

import gc
import sys
from collections.abc import Sequence

from nova.agent import rehearsal
from nova.agent.runners import bootstrap


def warm_up(modules: Sequence[str]) -> None:
    """Call once in the process that agents are forked from, before the first fork. Opens nothing and starts no thread.

    ``modules`` are the bootstraps of the runtimes whose workers are forked (``WorkerLaunch.module``). Afterwards garbage
    collection is off; a worker turns it on again when its code is loaded.
    """
    sys.dont_write_bytecode = True
    bootstraps = [bootstrap(name) for name in modules]
    for module in bootstraps:
        module.preload()
        module.rehearse()
    rehearsal.codecs()
    for module in bootstraps:
        module.prepare()
    gc.collect()
    gc.freeze()
    gc.disable()
