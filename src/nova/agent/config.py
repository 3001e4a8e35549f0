"""What an agent is told before it starts, by the backend that isolates it. Plain data, so it crosses processes as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

GUEST_PORT: Final = 8399
LaunchKind = Literal["fork", "exec", "none", "lambda"]


@dataclass(frozen=True, slots=True)
class WorkerLaunch:
    """How the agent starts a worker of its runtime.

    ``fork``: import ``module`` (preloaded, see :mod:`nova.agent.preload`) and call its ``main()`` in a child of the agent;
    such a worker can itself fork a fresh process per call. ``exec``: run ``argv`` with ``env`` as a standing worker that
    boots and waits for its init line. ``none``: nothing stands; ``argv`` is started at Init and speaks lines on stdin and
    stdout. ``lambda``: as ``none``, but it asks for its calls through the Lambda Runtime API. ``script`` runs a plain
    script. In ``argv`` (kinds ``none`` and ``lambda``) and ``script`` the word ``{entry}`` stands for the absolute path of
    the entry file and ``{input}`` for the input file.
    """

    kind: LaunchKind
    module: str = ""
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    script: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, the inverse of :meth:`of`."""
        return {
            "kind": self.kind,
            "module": self.module,
            "argv": list(self.argv),
            "env": [list(pair) for pair in self.env],
            "script": list(self.script),
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            kind=data["kind"],
            module=data["module"],
            argv=tuple(data["argv"]),
            env=tuple((name, value) for name, value in data["env"]),
            script=tuple(data["script"]),
        )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``token_sha256`` is the digest of the token that the host's Hello must show; the token itself never comes inside. It is
    empty where nobody but the host can reach the agent, so that there is no Hello.

    ``reload_dir`` is a folder that the agent may make and write; without it the code cannot be replaced while it runs.
    """

    token_sha256: bytes
    instance_id: str
    runtime: str
    worker: WorkerLaunch
    code_dir: str = "/code"
    reload_dir: str | None = None
    guest_port: int = GUEST_PORT
    """where code inside reaches the guest API, on loopback; 0: nowhere. Only for places with a network of their own."""
    api_digest: str = ""
    """SHA-256, in hex, of what processes inside show to the guest API, if the host has chosen it: the token itself comes with
    Init, and so into no memory that other instances are forked from"""
    relayed: bool = False
    """The host is behind a relay, which reads a worker's descriptors from the moment it gets them. So it gets them when the
    worker has loaded and not before, and the agent keeps copies for the next host."""
    blank: bool = False
    """Booted for nobody: no worker stands, and the first thing it is told is to be kept in a snapshot."""
    term_grace_ms: int = 0
    """What workers have to end in when the agent gets SIGTERM; 0: it ends at once, or not at all as the first process."""

    def takes_init(self, entry_kind: str) -> bool:
        """Whether the standing worker serves such a function, and can be loaded by its host on its line: it sets its own
        limits then, which a program that was started with ``exec`` may not be able to."""
        return self.worker.kind == "fork" and entry_kind != "script"

    @property
    def stands(self) -> bool:
        """Whether a worker stands before a function is known."""
        return self.worker.kind in ("fork", "exec") and not self.blank

    def named(self, instance_id: str, api_digest: str) -> Self:
        """The same for one instance."""
        return replace(self, instance_id=instance_id, api_digest=api_digest)
