"""The process that instances are forked from. It does that and nothing else.

The launcher writes to much of its memory for each request. What it wrote to since an instance was forked from it would belong
to that instance alone, a copy for each. So it has a fork of its own made that keeps still, and asks it for the others. The
launcher is the parent of all of them. Guest-side code: standard library only.
"""

import gc
import json
import os
import socket
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from nova.agent import holes, quiet
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.agent.process import Worker, start_worker
from nova.agent.runners import standing_main
from nova.execution.backends.sandbox import calls, kernel, namespaces, practice, ptrace
from nova.execution.backends.sandbox.calls import Call
from nova.execution.backends.sandbox.image import Image
from nova.execution.backends.sandbox.ptrace import Busy

_READ: Final = 1 << 14
_MAX_DESCRIPTORS: Final = 16
_MAX_PLANS: Final = 200
_LOOKS, _LOOK_S = 1000, 0.001
_STILL: Final = b"still"
"""What it says when it has come to rest."""
_NEW_PLAN: Final = 255
"""The first byte of a message that is a plan; of a request it is the number of one."""


class Plan(NamedTuple):
    """What is the same for all instances of a kind. ``start`` gives the standing worker, if the kind has one."""

    confinement: Sequence[Call]
    sealing: Sequence[Call]
    hello: bytes
    start: Callable[[], Worker] | None
    config: AgentConfig
    clone: Callable[[], int]
    online: bool

    @classmethod
    def of(cls, body: Mapping[str, Any], sealings: Mapping[bool, Sequence[Call]]) -> "Plan":
        config = AgentConfig(b"", "", body["runtime"], WorkerLaunch.of(body["worker"]))
        return cls(
            namespaces.confinement(body["root"], body["tmp_bytes"], own_network=not body["online"]),
            sealings[body["donor"]],
            quiet.greeting(config.runtime, stands=config.stands),
            _starter(config) if config.stands else None,
            config,
            calls.clone_bare(namespaces.INSTANCE_NAMESPACES | (0 if body["online"] else kernel.CLONE_NEWNET)),
            body["online"],
        )


def _starter(config: AgentConfig) -> Callable[[], Worker]:
    main = standing_main(config)
    return lambda: start_worker(0, main)


class ZygoteLost(OSError):
    """It has died; what it may have forked last is a child of this process that nobody knows."""


class Zygote:
    """The launcher's side. ``sealings``: what makes an instance weak, for those that are no donors and those that are.
    ``practised``: the workers whose memory is learnt beforehand (:mod:`practice`), if there are any."""

    def __init__(self, own_network: int, sealings: Mapping[bool, Sequence[Call]], practised: str | None = None) -> None:
        self._own_network = own_network
        self._sealings = sealings
        self._practised = practised
        self._pid = 0
        self._sock: socket.socket | None = None
        self._plans: dict[str, int] = {}
        self._holds = ptrace.SUPPORTED
        self.images: list[Image] = []
        """The memory of this one, and of the one before it; none where that cannot be had."""

    def spawn(self, kind: Mapping[str, Any], name: str, api_digest: str, fds: Sequence[int]) -> int:
        """Fork the first process of an instance; its pid. ``kind``: ``root`` (the path of it), ``tmp_bytes``, ``online``,
        ``donor``, ``runtime`` and ``worker`` (:meth:`WorkerLaunch.as_dict`).

        ``fds``: its control socket, where it reports, where it waits for the word to go on, its network if it is online, and
        the files by which it joins its control group. Raises OSError, :class:`ZygoteLost` among it: the next request is to
        another one.
        """
        text = json.dumps(kind)
        try:
            sock = self._sock or self.start()
            if text not in self._plans:
                if len(self._plans) == _MAX_PLANS:  # kinds that are not asked for any more cannot be told from others
                    self.end()
                    sock = self.start()
                self._ask(sock, bytes([_NEW_PLAN]) + text.encode(), ())
                self._plans[text] = len(self._plans)
            request = bytes([self._plans[text]]) + f"{name} {api_digest}".encode()
            return int(self._ask(sock, request, fds))
        except (EOFError, ConnectionError) as error:
            self.end()
            raise ZygoteLost(0, "the process that instances are forked from has died") from error

    def end(self) -> None:
        """Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            self._plans.clear()
            os.waitpid(self._pid, 0)

    @staticmethod
    def _ask(sock: socket.socket, message: bytes, fds: Sequence[int]) -> bytes:
        socket.send_fds(sock, [message], fds)
        answer = sock.recv(512)
        if not answer:
            raise EOFError
        if not answer.isdigit():
            raise OSError(0, answer.decode(errors="replace"))
        return answer

    def start(self) -> socket.socket:
        """Fork it, unless a request is to do that, and wait until it has come to rest."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        image = Image()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                ours.close()
                _serve(theirs, self._own_network, self._sealings, self._practised, image.file)
            finally:
                os._exit(70)
        theirs.close()
        self._sock = ours
        if ours.recv(len(_STILL)) == _STILL and self._holds:
            self._hold(image)
        else:
            image.close()
        return ours

    def _hold(self, image: Image) -> None:
        try:
            _hold_once_it_waits(image, self._pid)
        except OSError:  # it goes on without, and so do those after it
            self._holds = False
            image.close()
        else:
            for old in self.images[:-1]:
                old.close()
            self.images = [*self.images[-1:], image]


def _hold_once_it_waits(image: Image, pid: int) -> None:
    """It has said that it is about to wait. Raises OSError."""
    for _ in range(_LOOKS):
        try:
            image.hold(pid)
            return
        except Busy:
            time.sleep(_LOOK_S)
    raise Busy(0, "it never waits")


def _serve(
    sock: socket.socket, own_network: int, sealings: Mapping[bool, Sequence[Call]], practised: str | None, image: int
) -> NoReturn:
    """Ends with the launcher. Each function that the loop runs is memory that the next fork has for itself: it is one function,
    and does nothing that can be done by others."""
    _keep(sock.fileno(), own_network, image)
    plans: list[Plan] = []
    gc.collect()
    gc.freeze()
    holes.fill()
    if practised is not None:
        practice.practise(practised)
    enter = calls.enter_network
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array("i").itemsize)
    sock.send(_STILL)
    while True:
        message, ancillary, _, _ = sock.recvmsg(_READ, space, socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)
        if message[0] == _NEW_PLAN:
            sock.send(_take_plan(plans, message[1:], sealings))
            continue
        fds = memoryview(ancillary[0][2]).cast("i").tolist()
        plan = plans[message[0]]
        pid = -1
        if not plan.online or enter(fds[3]) == 0:
            pid = plan.clone()
            if pid == 0:
                _be_first(plan, message, fds)
            if plan.online and enter(own_network) != 0:
                os._exit(70)
        for fd in fds:
            os.close(fd)
        sock.send(b"%d" % pid if pid > 0 else b"no process could be forked")


def _take_plan(plans: list[Plan], text: bytes, sealings: Mapping[bool, Sequence[Call]]) -> bytes:
    try:
        plans.append(Plan.of(json.loads(text), sealings))
    except OSError as error:
        return f"{error}".encode()
    return b"0"


def _keep(*descriptors: int) -> None:
    """And 0 to 2: no instance may be held open by what the launcher had when this was forked."""
    first = 3
    for fd in sorted(descriptors):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _be_first(plan: Plan, message: bytes, fds: Sequence[int]) -> NoReturn:
    """The first process of an instance, from its first moment on."""
    control, status, go, *files = fds
    said = False
    try:
        if not os.read(go, 1):
            os._exit(0)
        namespaces.join(files[plan.online :])
        calls.make(plan.confinement)
        namespaces.keep_only([control, status])
        status = namespaces.STATUS_FD
        calls.make(plan.sealing)
        os.write(status, b"ready\n")
        os.close(status)
        said = True
        quiet.run(namespaces.FIRST_FD, plan.hello, plan.start, lambda: plan.config.named(*message[1:].decode().split()))
    except BaseException as error:
        if not said:
            os.write(status, f"error {error}\n".encode())
    os._exit(70)
