"""New code for an instance that runs: an archive that arrives in pieces and is unpacked beside the code that serves.

Nothing here touches the running code. Whatever is wrong with an archive is found before a worker of the new code exists,
and what was written of it is removed.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final, NoReturn

from nova.agent.messages import GuestError, ReloadHead
from nova.agent.serving import RESULT_FD, write_all
from nova.agent.worker import error_line

MAX_PIECE: Final = 64 << 10
"""Bytes of the archive in one frame."""
MAX_UNPACKED: Final = 250 << 20
"""Bytes of all files together."""
MAX_ENTRIES: Final = 100_000
"""Files, folders and links: installed dependencies are bounded by their bytes alone, so this is far above any of them."""
MAX_ARCHIVE: Final = MAX_UNPACKED + MAX_ENTRIES * 2048
"""Bytes of an archive; each entry costs its headers and padding beside its content."""


class Refused(Exception):
    """The new code is not taken; ``error`` tells the host why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.error = GuestError(kind, message)


@dataclass(frozen=True, slots=True)
class Arrived:
    """An archive that is complete and has the digest that was announced. ``tree`` is where it is to be unpacked."""

    archive: str
    tree: str
    handler: str
    entry: str


@dataclass(slots=True)
class _Incoming:
    head: ReloadHead
    archive: str
    tree: str
    file: IO[bytes]
    digest: "hashlib._Hash"
    received: int = 0


class Reload:
    """One reload at a time, stage by stage. A stage that fails ends it, and :class:`Refused` says why."""

    def __init__(self, folder: str | None) -> None:
        """``folder`` is the agent's own, made when it is needed; None: this instance cannot take new code."""
        self._folder = folder
        self._serial = 0
        self._incoming: _Incoming | None = None
        self._arrived: Arrived | None = None

    def begin(self, head: ReloadHead) -> None:
        if self._folder is None:
            raise Refused("Nova.Unsupported", "the code of this instance cannot be replaced")
        if self._incoming is not None or self._arrived is not None:
            raise Refused("Nova.InvalidState", "another reload is under way")
        if not 0 < head.size <= MAX_ARCHIVE:
            raise Refused("Nova.PayloadTooLarge", f"an archive of {head.size} bytes; at most {MAX_ARCHIVE}")
        relative(head.entry)
        self._serial += 1
        path = os.path.join(self._folder, str(self._serial))
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            file = open(f"{path}.tar", "xb")  # noqa: SIM115 - it stays open from frame to frame
        except OSError as error:
            raise not_stored(error) from None
        self._incoming = _Incoming(head, f"{path}.tar", path, file, hashlib.sha256())

    def add(self, payload: bytes) -> None:
        """The next piece: a JSON string, base64 of at most :data:`MAX_PIECE` bytes."""
        incoming = self._begun()
        try:
            piece = _piece(payload)
            if incoming.received + len(piece) > incoming.head.size:
                raise Refused("Nova.ValidationFailed", "more bytes arrived than were announced")
            incoming.file.write(piece)
        except Refused:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise not_stored(error) from None
        incoming.digest.update(piece)
        incoming.received += len(piece)

    def complete(self) -> Arrived:
        """The archive is whole. It stays on disk until :meth:`discard`."""
        incoming = self._begun()
        try:
            if incoming.received != incoming.head.size:
                text = f"{incoming.received} bytes arrived of {incoming.head.size} announced"
                raise Refused("Nova.ValidationFailed", text)
            found = f"sha256:{incoming.digest.hexdigest()}"
            if found != incoming.head.digest:
                raise Refused(
                    "Nova.ValidationFailed", f"the archive has the digest {found}, not {incoming.head.digest}"
                )
            incoming.file.close()
        except Refused:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise not_stored(error) from None
        self._incoming = None
        self._arrived = Arrived(incoming.archive, incoming.tree, incoming.head.handler, incoming.head.entry)
        return self._arrived

    def discard(self) -> None:
        """Forget what arrived. What was unpacked of it is the caller's to remove."""
        if self._incoming is not None:
            with contextlib.suppress(OSError):  # a full disk again, for bytes that nobody wants any more
                self._incoming.file.close()
            os.unlink(self._incoming.archive)
        if self._arrived is not None:
            os.unlink(self._arrived.archive)
        self._incoming = self._arrived = None

    def _begun(self) -> _Incoming:
        if self._incoming is None:
            raise Refused("Nova.InvalidState", "no reload was begun")
        return self._incoming


def _piece(payload: bytes) -> bytes:
    try:
        text = json.loads(payload)
        piece = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (ValueError, RecursionError, binascii.Error):
        piece = b""
    if not 0 < len(piece) <= MAX_PIECE:
        raise Refused("Nova.ValidationFailed", f"a piece is base64 of 1 to {MAX_PIECE} bytes")
    return piece


def not_stored(error: OSError) -> Refused:
    return Refused("Nova.Capacity", f"the new code cannot be stored: {error.strerror or error}")


def remove(tree: str) -> None:
    """Remove unpacked code. What a function made unremovable in its own copy costs nobody but itself."""
    shutil.rmtree(tree, ignore_errors=True)


def unpacked(arrived: Arrived, main: Callable[[], NoReturn]) -> NoReturn:
    """In a new worker: unpack, then be the worker ``main``; in its place an error line says why that cannot be."""
    try:
        unpack(arrived.archive, arrived.tree)
    except Refused as refused:
        write_all(RESULT_FD, error_line(refused.error))
        os._exit(1)
    main()


def unpack(archive: str, tree: str) -> None:
    """Make ``tree`` from an uncompressed tar of plain files, folders, and links that stay inside.

    Links come last, so nothing is ever written through one. Raises :class:`Refused`.
    """
    links: list[tuple[str, str]] = []
    total = 0
    try:
        os.mkdir(tree, 0o755)
        root = os.path.realpath(tree)
        with tarfile.open(archive, "r:") as tar:
            for count, member in enumerate(tar, start=1):
                total += member.size
                if count > MAX_ENTRIES or total > MAX_UNPACKED:
                    raise Refused(
                        "Nova.PayloadTooLarge", f"more than {MAX_UNPACKED >> 20} MiB or {MAX_ENTRIES} entries"
                    )
                target = os.path.join(root, relative(member.name))
                if member.type == tarfile.DIRTYPE:
                    os.makedirs(target, 0o755, exist_ok=True)
                elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    _write(tar, member, target)
                elif member.type == tarfile.SYMTYPE:
                    links.append((target, member.linkname))
                else:
                    raise _bad(f"{member.name!r} is neither a file nor a folder nor a link")
        for path, leads_to in links:
            _link(path, leads_to)
        for path, _ in links:
            if os.path.commonpath([root, os.path.realpath(path)]) != root:
                raise _bad(f"the link {os.path.relpath(path, root)!r} leads out of the code")
    except (tarfile.TarError, ValueError) as error:
        raise _bad(f"the archive cannot be read: {error}") from None
    except OSError as error:
        raise not_stored(error) from None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    mode = 0o755 if member.mode & 0o111 else 0o644
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    source = tar.extractfile(member)
    with open(os.open(target, flags, mode), "wb") as file:
        if source is not None:
            shutil.copyfileobj(source, file)
        os.fchmod(file.fileno(), mode)


def _link(path: str, leads_to: str) -> None:
    folder = os.path.dirname(path)
    if os.path.isabs(leads_to):
        raise _bad(f"a link leads to the absolute path {leads_to!r}")
    os.makedirs(folder, 0o755, exist_ok=True)
    if os.path.realpath(folder) != folder:
        raise _bad(f"{os.path.basename(path)!r} lies below a link")
    os.symlink(leads_to, path)


def relative(name: str) -> str:
    """``name`` as a path below the root. Raises :class:`Refused` for one that is empty, absolute or leads upwards."""
    path = posixpath.normpath(name)
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise _bad(f"the path {name!r} is not one below the code's folder")
    return path


def _bad(message: str) -> Refused:
    return Refused("Nova.ValidationFailed", message)
