"""Source trees: what a path may look like, the digest of a tree, and the archive that is mounted at ``/code``."""

import hashlib
import io
import posixpath
import stat
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from nova.errors import NovaError, invalid

MAX_PATH_BYTES = 256
MAX_DEPTH = 32
MAX_LINK_HOPS = 40
MIB = 1 << 20
FILE = 0o644
EXECUTABLE = 0o755
LINK = stat.S_IFLNK | 0o777
HANDLER_LINK = "handler"
"""``/code/handler`` leads to the entry file, unless the tree has something of that name."""
_FORMAT = b"nova-tree-1\0"


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """Bounds of one tree; sizes in bytes."""

    files: int = 5000
    file_bytes: int = 50 * MIB
    total_bytes: int = 250 * MIB

    def check_count(self, count: int) -> None:
        if count > self.files:
            raise _too_large(f"more than {self.files} files", self.files)

    def check_file(self, path: str, size: int) -> None:
        if size > self.file_bytes:
            raise _too_large(f"{path!r} is over {self.file_bytes // MIB} MiB", self.file_bytes)

    def check_total(self, size: int) -> None:
        if size > self.total_bytes:
            raise _too_large(f"the files together are over {self.total_bytes // MIB} MiB", self.total_bytes)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. ``mode`` is :data:`FILE`, :data:`EXECUTABLE`, or :data:`LINK`, whose ``data`` is the target."""

    path: str
    mode: int
    data: bytes

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_binary(self) -> bool:
        """Not UTF-8 text, or with a NUL."""
        return self.text is None

    @property
    def text(self) -> str | None:
        try:
            text = self.data.decode()
        except UnicodeDecodeError:
            return None
        return None if "\0" in text else text


class Tree:
    """Files by path, checked as a whole: no path twice, none below a file or a link, every link to a file inside.

    Iterates by path, bytewise. Raises ``validation_failed`` or ``payload_too_large``, naming the path.
    """

    def __init__(self, files: Iterable[SourceFile], limits: TreeLimits | None = None) -> None:
        by_path: dict[str, SourceFile] = {}
        total = 0
        for file in files:
            check_path(file.path)
            if file.path in by_path:
                raise invalid("files", f"{file.path!r} is there twice")
            by_path[file.path] = file
            total += len(file.data)
            if limits is not None:
                limits.check_count(len(by_path))
                limits.check_file(file.path, len(file.data))
                limits.check_total(total)
        self._files: dict[str, SourceFile] = {
            path: by_path[path] for path in sorted(by_path, key=lambda path: path.encode())
        }
        self.size = total
        self._folders = self._check_folders()
        for file in self:
            if file.is_link:
                self._check_link(file)

    def __iter__(self) -> Iterator[SourceFile]:
        return iter(self._files.values())

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def get(self, path: str) -> SourceFile | None:
        return self._files.get(path)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._files)

    @property
    def folders(self) -> tuple[str, ...]:
        """Every folder, parents first."""
        return tuple(sorted(self._folders))

    @property
    def content(self) -> Mapping[str, bytes]:
        """Bytes by path, links left out."""
        return {path: file.data for path, file in self._files.items() if not file.is_link}

    def with_files(self, *files: SourceFile) -> "Tree":
        """This tree with some files replaced or added."""
        return Tree([*(file for file in self if file.path not in {new.path for new in files}), *files])

    def without(self, paths: Iterable[str]) -> "Tree":
        gone = set(paths)
        return Tree(file for file in self if file.path not in gone)

    @property
    def code_hash(self) -> str:
        """``sha256:…`` over path, mode and bytes of every file by path; each part is framed by its length."""
        digest = hashlib.sha256(_FORMAT)
        for file in self:
            path = file.path.encode()
            digest.update(len(path).to_bytes(8, "big") + path)
            digest.update(file.mode.to_bytes(4, "big"))
            digest.update(len(file.data).to_bytes(8, "big"))
            digest.update(file.data)
        return f"sha256:{digest.hexdigest()}"

    def _check_folders(self) -> set[str]:
        folders: set[str] = set()
        for path in self._files:
            parent = posixpath.dirname(path)
            while parent and parent not in folders:
                if parent in self._files:
                    raise invalid("files", f"{parent!r} is both a file and a folder")
                folders.add(parent)
                parent = posixpath.dirname(parent)
        return folders

    def _check_link(self, link: SourceFile) -> None:
        """Follow a link the way the kernel would, from the root of the tree."""
        at: list[str] = []
        todo = link.path.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not at:
                    raise invalid("files", f"the link {link.path!r} leads out of the tree")
                at.pop()
                continue
            here = self._files.get("/".join([*at, part]))
            if here is None or not here.is_link:
                at.append(part)
                continue
            hops += 1
            target = here.text
            if target is None or not target:
                raise invalid("files", f"the link {link.path!r} has no readable target")
            if target.startswith("/") or hops > MAX_LINK_HOPS:
                raise invalid("files", f"the link {link.path!r} leads out of the tree")
            todo.extend(target.split("/")[::-1])
        end = "/".join(at)
        if end and end not in self._files and end not in self._folders:
            raise invalid("files", f"the link {link.path!r} leads to {end!r}, which does not exist")


def check_path(path: str) -> None:
    """Refuse a path that is not a plain relative path of at most 256 bytes and 32 parts, without control characters."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise invalid("files", f"the path {path!r} is not valid Unicode") from None
    if not path:
        raise invalid("files", "a path is empty")
    if size > MAX_PATH_BYTES:
        raise invalid("files", f"the path {path[:40]!r}… is longer than {MAX_PATH_BYTES} bytes")
    if any(unicodedata.category(char) == "Cc" for char in path):
        raise invalid("files", f"the path {path!r} has a control character")
    if path.startswith("/"):
        raise invalid("files", f"the path {path!r} is absolute")
    if "\\" in path:
        raise invalid("files", f"the path {path!r} has a backslash")
    parts = path.split("/")
    if ".." in parts:
        raise invalid("files", f"the path {path!r} leads out of the tree")
    if "" in parts or "." in parts:
        raise invalid("files", f"the path {path!r} has an empty part or '.'")
    if len(parts) > MAX_DEPTH:
        raise invalid("files", f"the path {path!r} is deeper than {MAX_DEPTH}")


def pack(tree: Tree, entry: str | None) -> bytes:
    """The archive of what is mounted: the tree, and for ``/code`` the ``handler`` link to ``entry``. Equal trees give equal
    bytes."""
    out = io.BytesIO()
    write_tar(out, tree, entry)
    return out.getvalue()


def write_tar(out: BinaryIO, tree: Tree, entry: str | None) -> None:
    """:func:`pack` into an open file."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in tree.folders:
            tar.addfile(_member(folder, tarfile.DIRTYPE, 0o755))
        for file in tree:
            if file.is_link:
                tar.addfile(_member(file.path, tarfile.SYMTYPE, 0o777, target=file.data.decode()))
            else:
                tar.addfile(_member(file.path, tarfile.REGTYPE, file.mode, size=len(file.data)), io.BytesIO(file.data))
        if entry is not None and HANDLER_LINK not in tree and HANDLER_LINK not in tree.folders:
            tar.addfile(_member(HANDLER_LINK, tarfile.SYMTYPE, 0o777, target=entry))


def _member(path: str, kind: bytes, mode: int, *, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """A header in which nothing depends on when or where it was made."""
    info = tarfile.TarInfo(path)
    info.type = kind
    info.mode = mode
    info.size = size
    info.linkname = target
    return info


def _too_large(detail: str, limit: int) -> NovaError:
    return NovaError("payload_too_large", detail, extra={"limit": limit})
