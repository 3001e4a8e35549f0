"""Memory that an idle instance shares again with all others: what it has written to and left as it was.

A fork shares the pages of the process that it comes from until it writes to them, and every count of references that goes
up and down again is a write. Two of five pages that an instance has to itself after its calls are, byte for byte, what they
were. So the process that instances are forked from keeps its memory behind a file (sealed, without a name): a page of an
instance that says the same as the file is given up, and what is read there afterwards is the file's page, one for all. It is
only ever the platform's own memory that is shared in this way, never what functions wrote.

Guest-side code: standard library only.
"""

import fcntl
import mmap
import os
import re
import signal
import socket
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, NoReturn

from nova.execution.backends.sandbox import ptrace
from nova.execution.backends.sandbox.ptrace import Stopped

_MADV_DONTNEED, _MADV_POPULATE_READ = 4, 22
_PAGE: Final = mmap.PAGESIZE
_LEAST: Final = 1 << 16
"""Bytes of a mapping that is worth it."""
_ALL_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Mapping(NamedTuple):
    """Addresses of a private, writable part of a process's memory, and of the file behind it."""

    first: int
    end: int
    offset: int
    inode: int
    name: str


class Image:
    """That file: made before the process is forked which :meth:`hold` then puts in front of it."""

    def __init__(self) -> None:
        self.file = os.memfd_create("nova-zygote", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.inode = os.fstat(self.file).st_ino
        self.text: mmap.mmap | None = None

    def hold(self, pid: int) -> None:
        """Put the memory of ``pid`` behind this file. It is to wait in a system call, and to have the file open under the same
        number, which is closed there. Raises OSError when it may not be stopped, or can do without."""
        with Stopped(pid) as process:
            offset = 0
            held: list[tuple[int, int, int]] = []
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                for mapping in _worthwhile(pid, process.in_use):
                    size = mapping.end - mapping.first
                    memory.seek(mapping.first)
                    text = memory.read(size)
                    if len(text) != size:
                        raise OSError(0, "its memory could not be read")
                    _write(self.file, text, offset)
                    held.append((mapping.first, size, offset))
                    offset += size
            fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, _ALL_SEALS)
            private = mmap.MAP_PRIVATE | 0x10  # MAP_FIXED
            for first, size, at in held:
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                if process.call(ptrace.MMAP, first, size, protection, private, self.file, at) != first:
                    raise OSError(0, "its memory could not be mapped")
                process.call(ptrace.MADVISE, first, size, _MADV_POPULATE_READ)
            process.call(ptrace.CLOSE, self.file)
        # Before Linux 6.7 what is sealed cannot be mapped shared, not even for reading.
        self.text = mmap.mmap(self.file, offset, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)

    def close(self) -> None:
        if self.text is not None:
            self.text.close()
            self.text = None
        os.close(self.file)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _worthwhile(pid: int, in_use: Sequence[int]) -> Iterator[Mapping]:
    """The interpreter's heaps and its own variables; not what the thread itself stands on."""
    interpreter = os.readlink(f"/proc/{pid}/exe")
    for mapping in _writable(pid):
        wanted = mapping.name in ("", "[heap]", interpreter)
        if wanted and mapping.end - mapping.first >= _LEAST and not _has(mapping, in_use):
            yield mapping


def _has(mapping: Mapping, addresses: Sequence[int]) -> bool:
    return any(mapping.first <= address < mapping.end for address in addresses)


def _writable(pid: int) -> Iterator[Mapping]:
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            span, modes, offset, _, inode, *name = line.split(None, 5)
            if modes == "rw-p":
                first, end = (int(text, 16) for text in span.split("-"))
                yield Mapping(first, end, int(offset, 16), int(inode), name[0].strip() if name else "")


# -- giving pages up ---------------------------------------------------------------------------------------------------

_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20
"""Bits of the highest byte of what ``/proc/…/pagemap`` says about a page."""


def _kind(flags: int) -> bytes:
    if flags & _SWAPPED:
        return b"-"
    return b"o" if flags & _PRESENT and not flags & _OF_FILE else b"."


_KINDS: Final = b"".join(map(_kind, range(256)))
_OWN: Final = re.compile(b"o+")
_SAME: Final = re.compile(b"[=.]*=[=.]*")
"""What lies between is the file's already, or was never read: to give it up costs nothing."""


def share(pid: int, images: Sequence[Image]) -> int:
    """Have the process give up what says the same as its image; how many pages that were. Raises OSError when it has ended,
    may not be looked into, or does not wait."""
    known = {image.inode: image.text for image in images if image.text is not None}
    given = 0
    with (
        Stopped(pid) as process,
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
        open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap,
    ):
        for mapping in _writable(pid):
            text = known.get(mapping.inode)
            if text is None:
                continue
            pagemap.seek(mapping.first // _PAGE * 8)
            kinds = bytearray(pagemap.read((mapping.end - mapping.first) // _PAGE * 8)[7::8].translate(_KINDS))
            for run in _OWN.finditer(bytes(kinds)):
                memory.seek(mapping.first + run.start() * _PAGE)
                own = memory.read((run.end() - run.start()) * _PAGE)
                base = mapping.offset + run.start() * _PAGE
                for at in range(0, len(own), _PAGE):
                    if own[at : at + _PAGE] == text[base + at : base + at + _PAGE]:
                        kinds[run.start() + at // _PAGE] = ord("=")
                        given += 1
            for run in _SAME.finditer(bytes(kinds)):
                size = (run.end() - run.start()) * _PAGE
                process.call(ptrace.MADVISE, mapping.first + run.start() * _PAGE, size, _MADV_DONTNEED)
    return given


class Sharer:
    """A process that does that, forked when it is first needed; whoever asks does not wait for it."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._pid = 0
        self._images: list[Image] = []

    def ask(self, pid: int, pidfd: int, images: Sequence[Image]) -> bool:
        """Of the first process of an instance and its children. False: there is too much to do already."""
        if self._images != images:  # it has those that there were when it was forked
            self.end()
        if self._sock is None:
            self._images = list(images)
            self._sock = self._start(images)
        try:
            socket.send_fds(self._sock, [b"%d" % pid], [pidfd], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it was killed
            self.end()
            return False
        return True

    def end(self) -> None:
        """Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            os.waitpid(self._pid, 0)

    def _start(self, images: Sequence[Image]) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _serve(theirs, images)
            finally:
                os._exit(70)
        theirs.close()
        return ours


def _serve(sock: socket.socket, images: Sequence[Image]) -> NoReturn:
    kept = sorted([sock.fileno(), *(image.file for image in images)])
    for first, last in zip([2, *kept], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(first + 1, last)
    space = socket.CMSG_SPACE(array("i").itemsize)
    while True:
        message, ancillary, _, _ = sock.recvmsg(32, space, socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)
        (pidfd,) = memoryview(ancillary[0][2]).cast("i")
        try:
            _share_all(int(message), pidfd, images)
        except OSError:
            pass  # it has ended, or is busy again
        finally:
            os.close(pidfd)


def _share_all(pid: int, pidfd: int, images: Sequence[Image]) -> None:
    """First the children: while their parent waits it buries none of them, and no other process gets the number of one."""
    with Stopped(pid):
        signal.pidfd_send_signal(pidfd, 0)  # it is still the one that was meant
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(text) for text in file.read().split()]
        for child in children:
            try:
                share(child, images)
            except OSError:
                continue
    share(pid, images)
