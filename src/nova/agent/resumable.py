"""An agent that may be kept in a snapshot of its machine, loaded or blank, and go on from there as any number of instances.

Freeze: the function's ``before_snapshot`` hook runs, the host goes away, and the agent waits for another host for as long as
it takes. Thaw is that host's first frame after Hello: the agent gets another name and token, the machine another clock and
other random numbers. Then Init makes the loaded worker serve: it takes the new environment over, renews what must not be
the same in two instances, and runs ``after_restore``. A blank one has no worker: its first starts after Thaw, when the
machine's random numbers are its own and its drives are mounted, and Init loads the code into it as after a boot.
"""

import dataclasses
import json
import os
import select
import socket
from array import array
from typing import Final, NoReturn

from nova.agent import frames
from nova.agent.config import AgentConfig
from nova.agent.frames import Frame
from nova.agent.loading import Code, Loading
from nova.agent.messages import GuestError, InitHead, LoadedHead, ThawHead
from nova.agent.supervisor import Supervisor
from nova.agent.worker import hook_line

FROZEN: Final = b"frozen"
"""To the first process: pass on what the control socket still says and nothing else, and let another host in then."""
REFUSED: Final = b"refused"
"""To the first process: it does not come to a snapshot, the host goes on speaking."""
_DONE: Final = b"ok"
_ANSWER_MS: Final = 5000


def thaw_message(thaw: ThawHead) -> bytes:
    """To the first process: the machine goes on."""
    return json.dumps(thaw.as_head()).encode()


def read_thaw(message: bytes) -> ThawHead:
    """The inverse of :func:`thaw_message`. Raises FrameError, ValueError."""
    return ThawHead.of(json.loads(message))


def run(control: socket.socket, config: AgentConfig, line: socket.socket | None) -> NoReturn:
    """As :func:`nova.agent.supervisor.run`. ``line``: to the first process of the machine; None: no snapshot can be taken."""
    code = 70
    try:
        code = Resumable(control, config, line).run()
    finally:
        os._exit(code)


class Resumable(Supervisor):
    def __init__(self, control: socket.socket, config: AgentConfig, line: socket.socket | None) -> None:
        super().__init__(control, config)
        self._line = line
        self._freezing: Loading | None = None
        self._resumed = False
        """another host is there, and has not said Thaw"""
        self._thawed = False
        """the worker is loaded and waits for Init"""
        self._multiplex = False

    def _receive(self, frame: Frame) -> None:
        if frame.type == frames.FREEZE:
            self._freeze(frame)
        elif frame.type == frames.THAW:
            self._thaw(frame)
        elif self._resumed:
            self._control.refuse(frame.id, "not_thawed", "the first frame to a resumed agent is Thaw")
        else:
            super()._receive(frame)

    # -- before the snapshot -------------------------------------------------------------------------------------

    def _freeze(self, frame: Frame) -> None:
        reason = self._obstacle()
        if reason:
            self._done(frame.id, GuestError("Nova.Unsupported", reason))
            return
        try:
            self._ask(FROZEN)
        except OSError as error:
            self._done(frame.id, GuestError("Nova.Unsupported", f"{error.strerror or error}"))
            return
        if self._config.blank:
            self._done(frame.id)
            self._leave()
            return
        (worker,) = self._workers.values()
        assert self._code is not None
        self._freezing = Loading(worker, self._code, frame.id, with_descriptors=False)
        self._loader.begin(self._freezing, hook_line("before_snapshot"))

    def _obstacle(self) -> str:
        """Why no snapshot can be taken now; empty when it can."""
        if self._line is None:
            return "this instance is not on a machine of its own"
        if self._config.blank:
            return ""
        if self._config.worker.kind != "fork":
            return f"workers of {self._config.runtime} cannot renew what must differ between instances"
        code = self._code
        if code is None or len(self._workers) != 1 or list(self._serving.values()) != [code] or code.tree:
            return "a snapshot is taken of one worker that has loaded the function's own code"
        if code.init.mode != "persistent" or code.init.entry_kind != "handler" or self._multiplex:
            return "a snapshot is taken of persistent handlers that have one call at a time"
        if self._freezing is not None or self._thawed:
            return "the snapshot is under way already"
        return ""

    def _loaded(self, loading: Loading, head: LoadedHead) -> None:
        if loading is not self._freezing:
            self._multiplex = head.multiplex
            super()._loaded(loading, head)
            return
        self._freezing = None
        self._done(loading.frame_id, head.error)
        if head.ok:
            self._leave()
        else:
            self._ask(REFUSED)

    def _leave(self) -> None:
        """Let go of this host, and wait for the next."""
        assert self._line is not None
        self._control.rest()
        self._poller.watch(self._line.fileno(), self._host_came)

    # -- after it ------------------------------------------------------------------------------------------------

    def _host_came(self) -> None:
        assert self._line is not None
        fds = array("i")
        space = socket.CMSG_SPACE(fds.itemsize)
        _data, ancillary, _, _ = self._line.recvmsg(16, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, received in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(received)
        self._poller.unwatch(self._line.fileno())
        if fds:
            self._resumed = True
            self._control.resume(socket.socket(fileno=fds[0]))

    def _thaw(self, frame: Frame) -> None:
        if not self._resumed:
            self._done(frame.id, GuestError("Nova.InvalidState", "this instance does not come from a snapshot"))
            return
        thaw = ThawHead.of(frame.head)
        blank = self._config.blank
        if blank != (thaw.place is not None):
            self._done(
                frame.id,
                GuestError("Nova.ValidationFailed", "a place is for machines booted for nobody, and needed there"),
            )
            return
        try:
            self._ask(thaw_message(thaw))
        except OSError as error:
            self._done(frame.id, GuestError("Nova.Unsupported", f"{error.strerror or error}"))
            return
        self._config = dataclasses.replace(
            self._config, instance_id=thaw.instance_id, token_sha256=bytes.fromhex(thaw.token_sha256), blank=False
        )
        self._control.become(self._config)
        self._guest.renew()
        self._resumed, self._thawed = False, not blank
        self._done(frame.id)

    def _load(self, frame: Frame) -> None:
        """Init of a thawed instance is for the worker that has the function loaded."""
        if self._config.blank:
            self._refuse(frame, "Nova.InitError", "this machine was booted for nobody")
            return
        if not self._thawed:
            super()._load(frame)
            return
        init = InitHead.of(frame.head)
        old = self._code
        if old is None or not self._workers or _loads(init) != _loads(old.init):
            self._refuse(frame, "Nova.InitError", "this instance has another function loaded")
            return
        self._thawed = False
        self._code = code = Code(self._config, init)
        (worker,) = self._workers.values()
        self._begin_loading(worker, code, frame.id)

    def _ask(self, question: bytes) -> None:
        """Have the first process do something. Raises OSError."""
        if self._line is None:
            raise OSError(95, "this instance is not on a machine of its own")
        self._line.send(question)
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        if not poll.poll(_ANSWER_MS):
            raise OSError(110, "the first process does not answer")
        answer = self._line.recv(512)
        if answer != _DONE:
            raise OSError(5, answer.decode(errors="replace") or "the first process has ended")


def _loads(init: InitHead) -> tuple[object, ...]:
    """What decides what a worker has loaded."""
    return init.function, init.runtime, init.mode, init.handler, init.entry, init.entry_kind, init.concurrency
