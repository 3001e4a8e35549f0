"""Uploaded archives: zip, tar and tar.gz, recognised by content, unpacked in memory within limits.

Nothing is written to a file system here, and no size in a header is believed: what is counted are the bytes that come out.
Refused are absolute paths, ``..``, devices and other special files, links that lead out, encrypted and damaged archives.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, Protocol

from nova.domain.tree import EXECUTABLE, FILE, LINK, MAX_PATH_BYTES, MIB, SourceFile, Tree, TreeLimits, check_path
from nova.errors import NovaError, invalid

FIELD = "archive"
_READ = 256 * 1024
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257
_TAR_BLOCK = 512
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OSError)
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_END = b"PK\x05\x06"
_ZIP64_LOCATOR = b"PK\x06\x07"
_ZIP_END_SIZE = 22
_ZIP_TAIL = _ZIP_END_SIZE + 65535
_ZIP_DIRECTORY_BYTES = 1024
"""What one entry may take in a zip's directory, which the standard library reads whole before anything can be counted."""
_TAR_OVERHEAD = 4 * _TAR_BLOCK
"""Bytes that a tar may spend on one entry beside its content: headers, a long name, padding."""


def unpack(file: BinaryIO, limits: TreeLimits) -> Tree:
    """The tree in an archive. Blocking; run it in a thread.

    One folder at the top that holds everything else is kept: paths are what the archive says. Raises
    ``validation_failed``, ``payload_too_large`` or ``unsupported_media_type``.
    """
    file.seek(0)
    head = file.read(_TAR_BLOCK)
    file.seek(0)
    try:
        if head.startswith(_ZIP_MAGIC):
            return _tree(_from_zip(file, limits), limits)
        if head.startswith(_GZIP_MAGIC):
            with gzip.open(file, "rb") as plain:
                bounded = _Bounded(plain, limits)
                tree = _tree(_from_tar(bounded, limits), limits)
                while bounded.read(_READ):  # the checksum is at the end
                    pass
                return tree
        if head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
            return _tree(_from_tar(file, limits), limits)
    except _DAMAGED as exc:
        raise invalid(FIELD, f"the archive is damaged: {exc}") from None
    raise NovaError("unsupported_media_type", "the archive is not a zip, tar or tar.gz")


def _tree(files: Iterator[SourceFile], limits: TreeLimits) -> Tree:
    tree = Tree(files, limits)
    if not len(tree):
        raise invalid(FIELD, "the archive has no files")
    return tree


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Bounded:
    """A decompressed stream that ends in a refusal when it gives more than a tree within the limits can need."""

    def __init__(self, source: _Reader, limits: TreeLimits) -> None:
        self._source = source
        self._left = limits.total_bytes + (limits.files + 1) * _TAR_OVERHEAD + 2 * MIB
        self._limits = limits

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            self._limits.check_total(self._limits.total_bytes + 1)
        return data


class _Budget:
    """Counts what has come out so far, and refuses as soon as it is too much."""

    def __init__(self, limits: TreeLimits) -> None:
        self._limits = limits
        self._entries = 0
        self._total = 0

    def entry(self) -> None:
        self._entries += 1
        self._limits.check_count(self._entries)

    def read(self, path: str, source: IO[bytes]) -> bytes:
        pieces = bytearray()
        while data := source.read(_READ):
            pieces += data
            self._total += len(data)
            self._limits.check_file(path, len(pieces))
            self._limits.check_total(self._total)
        return bytes(pieces)


def _from_zip(file: BinaryIO, limits: TreeLimits) -> Iterator[SourceFile]:
    _check_zip_directory(file, limits)
    budget = _Budget(limits)
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            path = _clean(entry.orig_filename)
            budget.entry()
            if entry.flag_bits & 0x1:
                raise invalid(FIELD, f"{path!r} is encrypted")
            if entry.compress_type not in _ZIP_METHODS:
                raise invalid(FIELD, f"{path!r} is compressed by a method other than deflate")
            mode = entry.external_attr >> 16
            if entry.is_dir() or stat.S_ISDIR(mode):
                continue
            kind = stat.S_IFMT(mode)
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise invalid(FIELD, f"{path!r} is a special file")
            with archive.open(entry) as source:
                data = budget.read(path, source)
            if kind == stat.S_IFLNK:
                yield _link(path, data)
            else:
                yield SourceFile(path, _mode(mode), data)


def _check_zip_directory(file: BinaryIO, limits: TreeLimits) -> None:
    """Refuse a directory of more entries than a tree may have, by its size, wherever a reader might find its end."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _ZIP_TAIL))
    tail = file.read()
    at = tail.find(_ZIP_END)
    while 0 <= at <= len(tail) - _ZIP_END_SIZE:
        if tail[max(0, at - 20) : at].startswith(_ZIP64_LOCATOR):
            raise invalid(FIELD, "zip64 archives are not accepted")
        (directory_bytes,) = struct.unpack_from("<L", tail, at + 12)
        if directory_bytes > limits.files * _ZIP_DIRECTORY_BYTES:
            limits.check_count(limits.files + 1)
        at = tail.find(_ZIP_END, at + 1)
    file.seek(0)


def _from_tar(file: "BinaryIO | _Bounded", limits: TreeLimits) -> Iterator[SourceFile]:
    budget = _Budget(limits)
    contents: dict[str, SourceFile] = {}
    with tarfile.open(fileobj=file, mode="r|", errorlevel=2) as archive:  # type: ignore[call-overload]  # reads only
        for member in archive:
            path = _clean(member.name)
            budget.entry()
            if member.isdir():
                continue
            if member.issym():
                made = _link(path, member.linkname.encode(errors="surrogateescape"))
            elif member.islnk():
                original = contents.get(_clean(member.linkname))
                if original is None:
                    raise invalid(FIELD, f"the hard link {path!r} leads to a file that does not come before it")
                made = SourceFile(path, original.mode, original.data)
            elif member.isreg() and not member.issparse():
                source = archive.extractfile(member)
                made = SourceFile(path, _mode(member.mode), budget.read(path, source) if source else b"")
            else:
                raise invalid(FIELD, f"{path!r} is a special file")
            contents[path] = made
            yield made


def _clean(path: str) -> str:
    """A member's path without the ``./`` and trailing ``/`` that tools add; everything else is the tree's to judge."""
    while path.startswith("./"):
        path = path[2:]
    path = path.rstrip("/") if path != "/" else path
    if path in ("", "."):
        return "."
    check_path(path)
    return path


def _link(path: str, target: bytes) -> SourceFile:
    if len(target) > 4 * MAX_PATH_BYTES:
        raise invalid(FIELD, f"the link {path!r} has an overlong target")
    return SourceFile(path, LINK, target)


def _mode(mode: int) -> int:
    return EXECUTABLE if mode & stat.S_IXUSR else FILE
