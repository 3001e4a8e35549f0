"""The launcher: a small privileged process that makes and ends instances for one daemon.

It is single-threaded, blocks in one poll, imports only the standard library and the agent, holds no secret (its
environment is empty) and ends when the daemon does, with every instance. It is also the zygote of Python workers: agent
and bootstrap are loaded and exercised here once, and every instance is a fork of that.

The daemon starts it as ``python -I -S launcher.py <source root> <descriptor of its socket>``; the first message
configures it.
"""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from nova.agent import at_fork

    at_fork.postpone()

from nova.agent import heir, preload, quiet
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.agent.process import Worker
from nova.execution.backends.sandbox import calls, command, kernel, mounts, namespaces, soft
from nova.execution.backends.sandbox.cgroup_layout import Layout
from nova.execution.backends.sandbox.cgroups import Group, Groups
from nova.execution.backends.sandbox.image import Sharer
from nova.execution.backends.sandbox.protocol import Message, receive, send
from nova.execution.backends.sandbox.seccomp import build_filter
from nova.execution.backends.sandbox.zygote import Zygote, ZygoteLost

RETRY_MS = 20
"""How long to wait before another try to remove a control group that the kernel still holds."""
ENTERED = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
"""Namespaces that a worker from outside enters."""
OOM_SCORE = 1000
"""Instances go before the daemon when the whole host runs out of memory."""


@dataclass(slots=True)
class Child:
    """A living instance or build: its first process and what must be freed after it."""

    name: str
    pid: int
    group: Group
    status_fd: int
    mounts_fd: int
    """its mount namespace, opened while it may be: later its first process is closed to everyone"""
    pidfd: int
    root: str | None = None
    """a root of its own, to be dropped after it"""
    status: bytes = b""
    limits: dict[str, float] = field(default_factory=dict)
    """in force"""
    ready: bool = False
    out_of_memory: bool = False


class Launcher:
    def __init__(self, sock: socket.socket, config: dict[str, Any]) -> None:
        self._sock = sock
        self._unprivileged: bool = config["unprivileged"]
        self._base: str = config["base"]
        self._sealings = {donor: namespaces.sealing(build_filter(donor=donor)) for donor in (False, True)}
        self._groups: Groups = Layout.of(config["cgroups"]).open(config["node"])
        self._children: dict[str, Child] = {}
        self._dying: list[Group] = []
        self._handlers: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._own_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._zygote = Zygote(own_network, self._sealings, next(iter(config["modules"]), None))
        self._sharer = Sharer()
        self._roots: set[str] = set()
        kernel.mount("tmpfs", self._base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=700,size=1m")

    # -- the loop ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Work until the daemon closes its end, then end every instance."""
        self._watch(self._sock.fileno(), self._read_request)
        send(self._sock, {"event": "started", "swept": self._sweep(), "hard_limits": self._groups.hard})
        self._zygote.start()
        try:
            while True:
                for fd, _events in self._poll.poll(RETRY_MS if self._dying else None):
                    if (handler := self._handlers.get(fd)) is not None:
                        handler()
                self._dying = [group for group in self._dying if not group.destroy()]
        except (EOFError, ConnectionError):
            self._end_all()

    def _sweep(self) -> list[str]:
        names: list[str] = []
        waiter = select.poll()
        for _ in range(100):
            names += self._groups.sweep()
            if not self._groups.leftovers():
                break
            waiter.poll(RETRY_MS)
        return names

    def _end_all(self) -> None:
        self._zygote.end()
        self._sharer.end()
        for child in self._children.values():
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        # In the order in which they die: one from which others came ends only when those below it are buried.
        left = {child.pid: child for child in self._children.values()}
        while left:
            pid, _ = os.waitpid(-1, 0)
            if (dead := left.pop(pid, None)) is not None:
                self._dying.append(dead.group)
        waiter = select.poll()
        for _ in range(100):
            self._dying = [group for group in self._dying if not group.destroy()]
            if not self._dying:
                break
            waiter.poll(RETRY_MS)
        self._groups.close()

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # -- requests ------------------------------------------------------------------------------------------------

    def _read_request(self) -> None:
        message = receive(self._sock)
        if message is None:
            raise EOFError
        body = message.body
        reply: dict[str, Any] = {"seq": body["seq"]}
        fds: list[int] = []
        try:
            fds = getattr(self, "_do_" + body["op"])(message, reply)
        except OSError as error:
            reply["error"] = str(error)
        finally:
            message.close()
        send(self._sock, reply, fds)

    def _do_root(self, message: Message, _reply: dict[str, Any]) -> list[int]:
        """Build a root that later requests name."""
        plan = mounts.RootPlan.of(message.body["plan"])
        if plan.name in self._roots:
            return []
        mounts.build_root(plan, f"{self._base}/{plan.name}")
        self._roots.add(plan.name)
        return []

    def _do_spawn(self, message: Message, reply: dict[str, Any]) -> list[int]:
        """A sealed instance: agent and standing worker, no code yet. Descriptors: control socket[, network]."""
        body = message.body
        control, *network = message.fds
        kind = {name: body[name] for name in ("tmp_bytes", "donor", "runtime", "worker")}
        kind |= {"root": f"{self._base}/{body['root']}", "online": bool(network)}

        def clone(start: Start) -> int:
            files = [control, start.status, start.go, *network, *start.files]
            try:
                return self._zygote.spawn(kind, body["instance"], body["api_digest"], files)
            except ZygoteLost:
                self._sharer.end()
                self._end_strays()
                return self._zygote.spawn(kind, body["instance"], body["api_digest"], files)

        child = self._start(body["instance"], body["uid"], clone)
        if self._groups.hard:  # what most functions have: a claim with these need not wait for them
            self._limit_or_end(child, body["limits"])
        reply["pid"] = child.pid
        return [child.pidfd]

    def _do_heir(self, message: Message, reply: dict[str, Any]) -> list[int]:
        """A sealed instance below the instance ``beneath``, whose worker will come from there. Descriptors: control
        socket, and the socket on which the worker is handed over."""
        body = message.body
        control, donor = message.fds
        above = self._child(body["beneath"])
        config = AgentConfig(b"", "", body["runtime"], WorkerLaunch.of(body["worker"]))
        config = config.named(body["instance"], body["api_digest"])
        hello = quiet.greeting(config.runtime, stands=True)
        confinement = namespaces.confinement(f"{self._base}/{body['root']}", body["tmp_bytes"], own_network=True)
        sealing = self._sealings[False]
        entries: list[int] = []

        def main(files: list[int], status: int) -> NoReturn:
            namespaces.join(files)
            calls.make(confinement)
            namespaces.keep_only([control, status, donor, *entries])
            calls.make(sealing)
            os.write(namespaces.STATUS_FD, b"ready\n")
            os.close(namespaces.STATUS_FD)
            first = namespaces.STATUS_FD + 1
            handed_over = range(first + 1, first + 1 + len(entries))

            def start() -> Worker:
                with socket.socket(fileno=first) as line:
                    return heir.receive_worker(line, handed_over)

            quiet.run(namespaces.FIRST_FD, hello, start, lambda: config)

        spaces = [os.open(f"/proc/{above.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "pid")]
        user, pids = spaces

        def clone(start: Start) -> int:
            entries.extend(start.group.entry_files())
            return namespaces.clone_beneath(user, pids, body["uid"], _waiting(start, main))

        try:
            child = self._start(body["instance"], None, clone)
        finally:
            for fd in (*spaces, *entries):
                os.close(fd)
        reply["pid"] = child.pid
        return [child.pidfd]

    def _do_namespaces(self, message: Message, _reply: dict[str, Any]) -> list[int]:
        """The namespaces of a place that is ready, in the order in which they are to be entered."""
        child = self._child(message.body["instance"])
        return [os.open(f"/proc/{child.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ENTERED]

    def _do_claim(self, message: Message, _reply: dict[str, Any]) -> list[int]:
        """Give a sealed instance its limits, its code and its volumes. Descriptors: a detached mount of each volume."""
        body = message.body
        child = self._child(body["instance"])
        self._limit(child, body["limits"])
        mounts.attach_inside(
            child.mounts_fd, self._own_mounts, [(source, target) for source, target in body["binds"]], body["tmp_bytes"]
        )
        volumes = [
            mounts.Volume(tree, target, read_only)
            for tree, (target, read_only) in zip(message.fds, body["volumes"], strict=True)
        ]
        if volumes:
            users = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                mounts.attach_volumes(child.mounts_fd, self._own_mounts, users, volumes)
            finally:
                os.close(users)
        return []

    def _do_run(self, message: Message, reply: dict[str, Any]) -> list[int]:
        """A command in a place of its own. Descriptors: where its stdout and stderr go."""
        body = message.body
        output = message.fds[0]
        root = f"{self._base}/{body['instance']}"
        confinement = namespaces.confinement(root, body["tmp_bytes"], own_network=True)
        sealing = self._sealings[False]

        def main(files: list[int], status: int) -> NoReturn:
            namespaces.join(files)
            calls.make(confinement)
            namespaces.keep_only([output, status])
            calls.make(sealing)
            os.write(namespaces.STATUS_FD, b"ready\n")
            command.run(body["argv"], body["env"], body["cwd"], namespaces.FIRST_FD, namespaces.STATUS_FD)

        mounts.build_root(mounts.RootPlan.of(body["plan"]), root)
        try:
            flags = namespaces.INSTANCE_NAMESPACES | kernel.CLONE_NEWNET
            child = self._start(body["instance"], body["uid"], lambda start: kernel.clone(flags, _waiting(start, main)))
        except OSError:
            mounts.drop_root(root)
            raise
        child.root = root
        self._limit_or_end(child, body["limits"])
        reply["pid"] = child.pid
        return [child.pidfd]

    def _do_stats(self, message: Message, reply: dict[str, Any]) -> list[int]:
        child = self._child(message.body["instance"])
        usage = child.group.usage() if self._groups.hard else soft.usage(child.pid)
        reply.update(
            memory_bytes=usage.memory_bytes,
            cpu_us=usage.cpu_us,
            pids=usage.pids,
            oom_kills=max(child.group.oom_kills(), int(child.out_of_memory)),
        )
        return []

    def _do_rest(self, message: Message, reply: dict[str, Any]) -> list[int]:
        """An instance has had nothing to do for a while."""
        child, images = self._child(message.body["instance"]), self._zygote.images
        reply["taken"] = not images or self._sharer.ask(child.pid, child.pidfd, images)
        return []

    def _child(self, name: str) -> Child:
        child = self._children.get(name)
        if child is None:
            raise ProcessLookupError(f"instance {name} has ended")
        return child

    def _limit(self, child: Child, limits: dict[str, Any]) -> None:
        if limits == child.limits:
            return
        child.group.limit(limits["memory_bytes"], limits["vcpus"], limits["cpu_share"], limits["pids"])
        if not self._groups.hard:
            soft.limit(child.pid, limits["memory_bytes"], limits["pids"])
        child.limits = limits

    def _limit_or_end(self, child: Child, limits: dict[str, Any]) -> None:
        try:
            self._limit(child, limits)
        except OSError:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            raise

    # -- children ------------------------------------------------------------------------------------------------

    def _start(self, name: str, uid: int | None, clone: Callable[["Start"], int]) -> Child:
        """Fork a child into new namespaces, by ``clone``. It does what it is for once its user (``uid`` out here; None: it has
        one already) and its group exist."""
        group = self._groups.create(name)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        status_read, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        files: list[int] = []
        pid = -1
        kept: list[int] = [status_read]
        try:
            files += group.entry_files()
            pid = clone(Start(go_read, status_write, files, group))
            _write(f"/proc/{pid}/oom_score_adj", str(OOM_SCORE))
            if uid is not None:
                # An ordinary user's launcher is root of a user namespace that knows no one else.
                namespaces.map_user(pid, 0 if self._unprivileged else uid)
            kept.append(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
            kept.append(os.pidfd_open(pid))
            os.write(go_write, b"g")
        except OSError:
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            for fd in kept:
                os.close(fd)
            self._dying.append(group)
            raise
        finally:
            for fd in (go_read, go_write, status_write, *files):
                os.close(fd)
        _, mounts_fd, pidfd = kept
        child = Child(name, pid, group, status_read, mounts_fd, pidfd)
        self._children[name] = child
        self._watch(child.pidfd, lambda: self._bury(child))
        self._watch(status_read, lambda: self._read_status(child))
        if group.oom_event is not None:
            self._watch(group.oom_event, lambda: self._out_of_memory(child))
        return child

    def _end_strays(self) -> None:
        """Children that nobody has been told of."""
        known = {child.pid for child in self._children.values()}
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            strays = set(map(int, file.read().split())) - known
        for pid in strays:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _read_status(self, child: Child) -> None:
        data = os.read(child.status_fd, 65536)
        child.status += data
        if not data:
            self._unwatch(child.status_fd)
        if not child.ready and child.status.startswith(b"ready\n"):
            child.ready = True
            send(self._sock, {"event": "ready", "instance": child.name})

    def _out_of_memory(self, child: Child) -> None:
        """Version 1 of control groups ends one process only; the whole group goes."""
        child.out_of_memory = True
        if child.group.oom_event is not None:
            self._unwatch(child.group.oom_event)
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def _bury(self, child: Child) -> None:
        """The first process is dead, so the kernel has ended all the others."""
        _, status = os.waitpid(child.pid, 0)
        del self._children[child.name]
        self._read_rest(child)
        for fd in (child.pidfd, child.status_fd, child.group.oom_event):
            if fd is not None:
                self._unwatch(fd)
        for fd in (child.pidfd, child.status_fd, child.mounts_fd):
            os.close(fd)
        if child.root is not None:
            mounts.drop_root(child.root)
        oom = child.out_of_memory or child.group.oom_kills() > 0
        if not child.group.destroy():
            self._dying.append(child.group)
        send(
            self._sock,
            {
                "event": "exit",
                "instance": child.name,
                "code": os.waitstatus_to_exitcode(status),
                "status": child.status.decode(errors="replace"),
                "oom": oom,
            },
        )

    def _read_rest(self, child: Child) -> None:
        try:
            while data := os.read(child.status_fd, 65536):
                child.status += data
        except BlockingIOError:
            return


class Start(NamedTuple):
    """Of a child: where it waits for the word to go on, where it reports, the files by which it joins its group, and that."""

    go: int
    status: int
    files: list[int]
    group: Group


def _waiting(start: Start, main: Callable[[list[int], int], NoReturn]) -> Callable[[], NoReturn]:
    """What a child does that is forked from the launcher itself."""

    def child() -> NoReturn:
        try:
            if not os.read(start.go, 1):
                os._exit(0)
            main(start.files, start.status)
        except BaseException as error:
            os.write(start.status if _is_open(start.status) else namespaces.STATUS_FD, f"error {error}\n".encode())
        os._exit(70)

    return child


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[2]))
    first = receive(sock)
    if first is None:
        return
    config = first.body
    try:
        if config["unprivileged"]:
            namespaces.enter_user_namespace()
        else:
            os.setgroups([])
        mounts.private_namespace()
        launcher = Launcher(sock, config)
        preload.warm_up(config["modules"])
    except OSError as error:
        send(sock, {"event": "failed", "error": str(error)})
        raise
    launcher.serve()


if __name__ == "__main__":
    main()
