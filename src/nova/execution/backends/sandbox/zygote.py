"""The process that instances are forked from. It does that and nothing else.

The launcher writes to much of its memory for each request. What it wrote to since an instance was forked from it would belong
to that instance alone, a copy for each. So it has a fork of its own made that keeps still, and asks it for the others. The
launcher is the parent of all of them. Guest-side code: standard library only.
"""

import gc
import json
import os
import socket
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from nova.agent import holes, quiet
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.agent.process import Worker, start_worker
from nova.agent.runners import standing_main
from nova.execution.backends.sandbox import calls, kernel, namespaces, practice
from nova.execution.backends.sandbox.calls import Call

_READ: Final = 1 << 14
_MAX_DESCRIPTORS: Final = 16
_OFFLINE, _ONLINE = b"offline", b"online"


class Plan(NamedTuple):
    """What is the same for all instances of a kind. ``start`` gives the standing worker, if the kind has one."""

    confinement: Sequence[Call]
    sealing: Sequence[Call]
    hello: bytes
    start: Callable[[], Worker] | None
    config: AgentConfig

    @classmethod
    def of(cls, body: Mapping[str, Any], sealings: Mapping[bool, Sequence[Call]]) -> "Plan":
        config = AgentConfig(b"", "", body["runtime"], WorkerLaunch.of(body["worker"]))
        return cls(
            namespaces.confinement(body["root"], body["tmp_bytes"], own_network=not body["online"]),
            sealings[body["donor"]],
            quiet.greeting(config.runtime, stands=config.stands),
            _starter(config) if config.stands else None,
            config,
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

    def spawn(self, kind: Mapping[str, Any], name: str, api_token: str, fds: Sequence[int]) -> int:
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
                self._ask(sock, text.encode(), ())
                self._plans[text] = len(self._plans)
            way = _ONLINE if kind["online"] else _OFFLINE
            words = (b"%d" % self._plans[text], way, name.encode(), api_token.encode())
            return int(self._ask(sock, b" ".join(words), fds))
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
        """Fork it, unless a request is to do that."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                ours.close()
                _serve(theirs, self._own_network, self._sealings, self._practised)
            finally:
                os._exit(70)
        theirs.close()
        self._sock = ours
        return ours


def _serve(
    sock: socket.socket, own_network: int, sealings: Mapping[bool, Sequence[Call]], practised: str | None
) -> NoReturn:
    """Ends with the launcher. Nothing here keeps what it makes: forks would keep it, too."""
    _keep_two(sock.fileno(), own_network)
    plans: list[Plan] = []
    gc.collect()
    gc.freeze()
    holes.fill()
    if practised is not None:
        practice.practise(practised)
    while True:
        message, fds = _receive(sock)
        if not message:
            os._exit(0)
        try:
            if message.startswith(b"{"):
                plans.append(Plan.of(json.loads(message), sealings))
                answer = b"0"
            else:
                answer = b"%d" % _spawn(plans, message, fds, own_network)
        except OSError as error:
            answer = f"{error}".encode()
        for fd in fds:
            os.close(fd)
        sock.send(answer)


def _keep_two(*descriptors: int) -> None:
    """And 0 to 2: no instance may be held open by what the launcher had when this was forked."""
    first = 3
    for fd in sorted(descriptors):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _receive(sock: socket.socket) -> tuple[bytes, "array[int]"]:
    fds = array("i")
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * fds.itemsize)
    message, ancillary, _, _ = sock.recvmsg(_READ, space, socket.MSG_CMSG_CLOEXEC)
    for _, _, received in ancillary:
        fds.frombytes(received)
    return message, fds


def _spawn(plans: Sequence[Plan], message: bytes, fds: Sequence[int], own_network: int) -> int:
    number, way, name, token = message.split()
    plan = plans[int(number)]
    control, status, go, *rest = fds
    flags = namespaces.INSTANCE_NAMESPACES | kernel.CLONE_PARENT
    if way == _OFFLINE:
        return kernel.clone(
            flags | kernel.CLONE_NEWNET, lambda: _be_first(plan, name, token, control, status, go, rest)
        )
    network, *files = rest
    kernel.setns(network, kernel.CLONE_NEWNET)
    try:
        return kernel.clone(flags, lambda: _be_first(plan, name, token, control, status, go, files))
    finally:
        kernel.setns(own_network, kernel.CLONE_NEWNET)


def _be_first(
    plan: Plan, name: bytes, token: bytes, control: int, status: int, go: int, files: Sequence[int]
) -> NoReturn:
    """The first process of an instance, from its first moment on."""
    said = False
    try:
        if not os.read(go, 1):
            os._exit(0)
        namespaces.join(files)
        calls.make(plan.confinement)
        namespaces.keep_only([control, status])
        status = namespaces.STATUS_FD
        calls.make(plan.sealing)
        os.write(status, b"ready\n")
        os.close(status)
        said = True
        quiet.run(
            namespaces.FIRST_FD,
            plan.hello,
            plan.start,
            lambda: plan.config.named(name.decode(), token.decode()),
        )
    except BaseException as error:
        if not said:
            os.write(status, f"error {error}\n".encode())
    os._exit(70)
