"""The first process of an instance that its host reaches through a byte stream.

It starts the agent as its child, lets the host in, carries the agent's control socket to it (:mod:`nova.agent.relay`),
buries what nobody else does, and ends when the agent has ended. What the agent may not do itself it does for the agent:
it keeps it through a snapshot of the machine, and sets the machine's clock and random numbers afterwards.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, NoReturn

from nova.agent import resumable
from nova.agent.config import AgentConfig
from nova.agent.entry import BadEntry
from nova.agent.messages import ThawHead
from nova.agent.process import adopt_orphans, kill_children, set_dumpable
from nova.agent.reactor import PollReactor, watch_signals
from nova.agent.relay import Relay
from nova.agent.resumable import FROZEN, REFUSED, read_thaw
from nova.agent.visitors import Door

HELLO_S: Final = 60.0
"""An instance that nobody greets in this time after its start ends."""
_LAST_WORDS_S: Final = 5.0
"""How long the agent may take to end after its host has gone, and its last bytes to reach the host."""


class Outpost:
    def __init__(
        self,
        config: AgentConfig,
        listener: socket.socket | None,
        port: int = -1,
        *,
        become: Callable[[], None] = lambda: None,
        awaken: Callable[[ThawHead], None] | None = None,
    ) -> None:
        """``become``: what the agent's process does to itself first, such as giving up the rights of this one. ``awaken``:
        what to do to the machine when it goes on from a snapshot; None: it cannot be taken one of."""
        self._config = config
        self._become = become
        self._awaken = awaken
        self._reactor = PollReactor()
        self._door = Door(self._reactor, listener, port, self._admit)
        self._started = time.monotonic()
        self._ends_at: float | None = self._started + HELLO_S
        self._agent = 0
        self._exit: int | None = None
        self._relay: Relay | None = None
        self._frozen = False
        self._control, self._line = self._start_agent(config, listener)

    def run(self) -> int:
        """Until the agent has ended and its last words have gone out; returns the agent's exit code."""
        set_dumpable(False)
        adopt_orphans()
        watch_signals(self._reactor, (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT), self._signalled)
        self._reactor.on_readable(self._line.fileno(), self._asked)
        self._door.open(self._config)
        self._bury()
        while self._exit is None or self._relay is not None:
            waits = [at for at in (self._door.deadline(), self._ends_at) if at is not None]
            self._reactor.turn(min(waits, default=None))
            self._door.check_deadline()
            if self._ends_at is not None and time.monotonic() >= self._ends_at:
                break
        kill_children()
        return 1 if self._exit is None else self._exit

    # -- the agent -----------------------------------------------------------------------------------------------

    def _start_agent(self, config: AgentConfig, listener: socket.socket | None) -> tuple[socket.socket, socket.socket]:
        """Fork it. Its control socket, and the line on which it asks this process."""
        ours, theirs = socket.socketpair()
        line, their_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._agent = os.fork()
        if self._agent == 0:
            ours.close()
            line.close()
            if listener is not None:
                listener.close()
            self._be_agent(theirs, their_line, config)
        theirs.close()
        their_line.close()
        line.setblocking(False)
        return ours, line

    def _be_agent(self, control: socket.socket, line: socket.socket, config: AgentConfig) -> NoReturn:
        try:
            self._become()
            resumable.run(control, config, line if self._awaken is not None else None)
        finally:
            os._exit(70)

    def _signalled(self, numbers: set[int]) -> None:
        if self._exit is None:
            for number in numbers - {signal.SIGCHLD}:
                os.kill(self._agent, number)
        self._bury()

    def _bury(self) -> None:
        """Every dead child. When the agent is dead, so is everything it started."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._agent:
                code = os.waitstatus_to_exitcode(status)
                self._exit = code if code >= 0 else 128 - code
                self._ends_at = time.monotonic() + _LAST_WORDS_S
                self._door.close()

    # -- the host ------------------------------------------------------------------------------------------------

    def _admit(self, wire: int, first: bytes) -> None:
        """The host is there."""
        self._ends_at = None
        if self._frozen:
            self._frozen = False
            self._control, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._line, [b"host"], [theirs.fileno()])
        self._relay = Relay(self._reactor, wire, self._control, self._relay_ended)
        self._relay.start(first)

    def _relay_ended(self) -> None:
        self._relay = None
        if not self._frozen:
            self._ends_at = time.monotonic() + _LAST_WORDS_S
        elif self._exit is None:
            self._door.open(self._config)

    # -- what the agent asks -------------------------------------------------------------------------------------

    def _asked(self) -> None:
        try:
            question = self._line.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            question = b""
        if not question:
            self._reactor.on_readable(self._line.fileno(), None)
        elif question == FROZEN:
            self._frozen = True
            if self._relay is not None:
                self._relay.rest()
            self._answer(b"ok")
        elif question == REFUSED:
            self._frozen = False
            if self._relay is not None:
                self._relay.listen()
            self._answer(b"ok")
        elif self._awaken is not None:
            thaw = read_thaw(question)
            self._config = dataclasses.replace(
                self._config, instance_id=thaw.instance_id, token_sha256=bytes.fromhex(thaw.token_sha256)
            )
            try:
                self._awaken(thaw)
            except (OSError, BadEntry) as error:
                self._answer(str(error).encode())
            else:
                self._answer(b"ok")

    def _answer(self, text: bytes) -> None:
        with contextlib.suppress(OSError):
            self._line.send(text)
