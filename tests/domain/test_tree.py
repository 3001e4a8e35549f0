"""Source trees: digests, archives, limits."""

import io
import tarfile

import pytest

from nova.domain.tree import EXECUTABLE, FILE, LINK, SourceFile, Tree, TreeLimits, pack
from nova.errors import NovaError


def tree(**files: bytes) -> Tree:
    return Tree(SourceFile(path.replace("__", "/"), FILE, data) for path, data in files.items())


def test_every_byte_of_path_mode_and_content_counts() -> None:
    """BU6: digests are whole SHA-256; one changed byte of one file or path changes them; `a/b` and `a_b` do not collide."""
    trees = [
        tree(a=b"x"),
        tree(a=b"y"),
        tree(b=b"x"),
        tree(a__b=b"x"),
        tree(a_b=b"x"),
        tree(a=b"x", b=b""),
        tree(a=b"", b=b"x"),
        tree(a=b"xb", c=b""),
        tree(ab=b"x"),
        Tree([SourceFile("a", EXECUTABLE, b"x")]),
        Tree([SourceFile("x", FILE, b""), SourceFile("a", LINK, b"x")]),
        Tree([SourceFile("x", FILE, b""), SourceFile("a", FILE, b"x")]),
    ]
    digests = {one.code_hash for one in trees}
    assert len(digests) == len(trees)
    assert all(len(digest) == len("sha256:") + 64 for digest in digests)


def test_order_does_not_matter() -> None:
    files = [SourceFile(path, FILE, path.encode()) for path in ("z", "a/b", "a-b", "ä", "Z")]
    one, other = Tree(files), Tree(reversed(files))
    assert one.code_hash == other.code_hash
    assert pack(one, "z") == pack(other, "z")
    assert one.paths == ("Z", "a-b", "a/b", "z", "ä")


def test_the_archive_is_the_tree_with_a_link_to_the_entry() -> None:
    files = [SourceFile("src/main.py", FILE, b"x"), SourceFile("run", EXECUTABLE, b"y"), SourceFile("l", LINK, b"run")]
    with tarfile.open(fileobj=io.BytesIO(pack(Tree(files), "src/main.py"))) as tar:
        members = {member.name: member for member in tar}
        assert [(m.uid, m.gid, m.mtime, m.uname) for m in members.values()] == [(0, 0, 0, "")] * 5
        assert members["handler"].linkname == "src/main.py"
        assert (members["l"].linkname, members["run"].mode, members["src"].isdir()) == ("run", 0o755, True)


def test_a_file_of_the_users_named_handler_stays() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(tree(handler=b"mine"), "handler"))) as tar:
        (member,) = tar
        assert member.isreg()
    with tarfile.open(fileobj=io.BytesIO(pack(tree(handler__x=b""), "handler/x"))) as tar:
        assert [member.name for member in tar] == ["handler", "handler/x"]


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        (TreeLimits(files=2), True),
        (TreeLimits(files=1), False),
        (TreeLimits(file_bytes=3), True),
        (TreeLimits(file_bytes=2), False),
        (TreeLimits(total_bytes=5), True),
        (TreeLimits(total_bytes=4), False),
    ],
)
def test_limits(limits: TreeLimits, accepted: bool) -> None:
    files = [SourceFile("a", FILE, b"123"), SourceFile("b", FILE, b"45")]
    if accepted:
        assert len(Tree(files, limits)) == 2
        return
    with pytest.raises(NovaError, match="payload_too_large"):
        Tree(files, limits)


def test_text_and_binary_are_told_apart() -> None:
    assert SourceFile("a", FILE, "ü".encode()).text == "ü"
    assert SourceFile("a", FILE, b"\xff").text is None
    assert SourceFile("a", FILE, b"a\0b").text is None
