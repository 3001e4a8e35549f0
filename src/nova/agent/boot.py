"""First process of a container: an agent that learns from its environment what it is.

=========================  ===========================================================================================
NOVA_AGENT_TOKEN_SHA256    digest of the host's token, hexadecimal; the token itself never comes inside
NOVA_INSTANCE_ID           the instance's name
NOVA_AGENT_LISTEN          ``connect:PATH`` a unix socket where the host waits; ``unix:PATH`` one where this waits for the
                           host; ``tcp:PORT`` on every address, and ``serial:PATH``, both through a relay
NOVA_AGENT_RELOAD_DIR      a folder on a tmpfs for code that arrives later; empty: the code cannot be replaced
=========================  ===========================================================================================

Runs already as the user that workers are to have. SIGTERM gives the workers five seconds.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from nova.agent import preload, privileges, supervisor
from nova.agent.entry import DESCRIPTION, BadEntry, Entry, connect_to, describe, listen_at, open_port
from nova.agent.outpost import Outpost

_VARIABLES = {
    "token_sha256": "NOVA_AGENT_TOKEN_SHA256",
    "instance_id": "NOVA_INSTANCE_ID",
    "listen": "NOVA_AGENT_LISTEN",
}
_RELOAD_DIR = "NOVA_AGENT_RELOAD_DIR"
BAD_ENTRY = 64
"""Exit code when what the starter or the image says cannot be."""


def main(description: str = DESCRIPTION) -> NoReturn:
    """Never returns; the exit code is the agent's."""
    code = 70
    try:
        words = dict(os.environ)
        os.environ.clear()
        code = _serve(words, describe(description))
    except BadEntry as error:
        print(f"nova agent: {error}", file=sys.stderr)
        code = BAD_ENTRY
    except OSError as error:
        print(f"nova agent: {error.filename or ''} {error.strerror or error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(words: Mapping[str, str], description: Mapping[str, Any]) -> int:
    entry = Entry.of({name: words[variable] for name, variable in _VARIABLES.items() if variable in words})
    kind, _, where = entry.listen.partition(":")
    relayed = kind in ("tcp", "vsock", "serial")
    config = entry.config(description, relayed=relayed, reload_dir=words.get(_RELOAD_DIR) or None)
    privileges.be_tame()
    preload.warm_up([config.worker.module] if config.worker.kind == "fork" else [])
    if kind == "connect":
        supervisor.run(connect_to(where), config)
    if kind == "serial":
        return Outpost(config, None, open_port(where)).run()
    listener = listen_at(entry.listen)
    if not relayed:
        with listener:
            control, _ = listener.accept()
        supervisor.run(control, config)
    return Outpost(config, listener).run()
