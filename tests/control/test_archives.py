"""Archives that are meant to do harm, and those that are not."""

import io
import stat
import struct
import tarfile
import zipfile

import pytest

from nova.control.archives import unpack
from nova.domain.tree import EXECUTABLE, FILE, LINK, MIB, TreeLimits
from nova.errors import NovaError
from tests.control.support import tar_member, tar_of, zip_of

LIMITS = TreeLimits(files=50, file_bytes=MIB, total_bytes=2 * MIB)


def refusal(data: bytes, limits: TreeLimits = LIMITS) -> NovaError:
    with pytest.raises(NovaError) as caught:
        unpack(io.BytesIO(data), limits)
    return caught.value


def test_zip_keeps_paths_bytes_modes_and_links() -> None:
    """BE8: a file name with a quote, a semicolon or a space is data."""
    files = {"main.py": "x", "bin/run": "#!/bin/sh", "a 'b\"; rm -rf $HOME": "y", "to": "bin/run", "empty/": ""}
    modes = {"bin/run": stat.S_IFREG | 0o755, "to": stat.S_IFLNK | 0o777}
    tree = unpack(io.BytesIO(zip_of(files, modes=modes)), LIMITS)
    assert {file.path: file.mode for file in tree} == {
        "main.py": FILE,
        "bin/run": EXECUTABLE,
        "a 'b\"; rm -rf $HOME": FILE,
        "to": LINK,
    }


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_keeps_paths_bytes_modes_and_links(mode: str) -> None:
    data = tar_of(
        (tar_member("./", tarfile.DIRTYPE), b""),
        (tar_member("./main.py"), b"x"),
        (tar_member("./bin/run", mode=0o700), b"#!/bin/sh"),
        (tar_member("to", tarfile.SYMTYPE, link="bin/../main.py"), b""),
        (tar_member("same", tarfile.LNKTYPE, link="./main.py"), b""),
        mode=mode,
    )
    tree = unpack(io.BytesIO(data), LIMITS)
    assert {file.path: (file.mode, file.data) for file in tree} == {
        "main.py": (FILE, b"x"),
        "bin/run": (EXECUTABLE, b"#!/bin/sh"),
        "to": (LINK, b"bin/../main.py"),
        "same": (FILE, b"x"),
    }


@pytest.mark.parametrize(
    "path",
    [
        "../x", "a/../../x", "/etc/passwd", "a/../b", "a//b", "a/./b", "a\nb", "a\x1bb", "..", "a\\..\\b",
        "x" * 257, "/".join("d" * 33),
    ],
)  # fmt: skip
def test_paths_that_lead_out_or_are_not_plain_are_refused(path: str) -> None:
    """BE8: an archive entry that is absolute, has `..` or a control character is refused at upload."""
    assert refusal(zip_of({"main.py": "", path: "x"})).code == "validation_failed"
    assert refusal(tar_of((tar_member(path), b"x"))).code == "validation_failed"


def test_a_name_is_not_cut_at_a_nul() -> None:
    """BE8: what comes after a NUL in a zip's name counts."""
    data = zip_of({"main.py": "", "safe~../../evil": "x"}).replace(b"safe~", b"safe\0")
    assert "control character" in refusal(data).detail


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_devices_and_other_special_files_are_refused(kind: bytes) -> None:
    """BE8: a device is refused."""
    if kind == tarfile.GNUTYPE_SPARSE:
        assert refusal(tar_of((tar_member("x", kind), b""))).status == 400
    else:
        assert "special file" in refusal(tar_of((tar_member("x", kind), b""))).detail
    if kind == tarfile.CHRTYPE:
        assert "special file" in refusal(zip_of({"x": ""}, modes={"x": stat.S_IFCHR | 0o666})).detail


@pytest.mark.parametrize(
    "links",
    [
        {"x": "../y"},
        {"x": "/etc/passwd"},
        {"x": "d/../../y"},
        {"x": "x"},
        {"x": "y", "y": "x"},
        {"x": "missing"},
        {"x": ""},
        # p/q/d is p, so p/q/d/../.. is outside although the text of the path stays inside
        {"p/q/d": "..", "p/q/x": "d/../../main.py"},
    ],
)
def test_links_that_lead_out_or_nowhere_are_refused(links: dict[str, str]) -> None:
    """BE8: a link that leads out is refused, also when only following other links shows where it leads."""
    data = tar_of(
        (tar_member("main.py"), b"x"),
        (tar_member("p/q/f"), b"x"),
        *((tar_member(path, tarfile.SYMTYPE, link=to), b"") for path, to in links.items()),
    )
    assert refusal(data).code == "validation_failed"


def test_nothing_is_written_through_a_link() -> None:
    """BE8: an entry below a link, or below another file, is refused."""
    through = tar_of((tar_member("d", tarfile.SYMTYPE, link="main.py"), b""), (tar_member("d/x"), b""))
    assert "both a file and a folder" in refusal(through).detail
    twice = tar_of((tar_member("x"), b"1"), (tar_member("x"), b"2"))
    assert "twice" in refusal(twice).detail
    forward = tar_of((tar_member("x", tarfile.LNKTYPE, link="y"), b""), (tar_member("y"), b""))
    assert "hard link" in refusal(forward).detail


def test_bombs_are_refused_before_they_are_unpacked() -> None:
    """BU7: a small archive that unpacks to too much is refused before it fills anything."""
    zeros = bytes(MIB)
    for data in (
        zip_of({"main.py": bytes(20 * MIB)}),
        zip_of({f"f{i}": zeros for i in range(3)}),
        tar_of((tar_member("main.py"), bytes(20 * MIB))),
        tar_of(*((tar_member(f"f{i}"), zeros) for i in range(3))),
        tar_of((tar_member("f0"), zeros), *((tar_member(f"f{i}", tarfile.LNKTYPE, link="f0"), b"") for i in (1, 2, 3))),
        zip_of({f"f{i}": "" for i in range(51)}),
        tar_of(*((tar_member(f"d{i}", tarfile.DIRTYPE), b"") for i in range(51))),
    ):
        assert len(data) < 200_000
        assert refusal(data).code == "payload_too_large"


def test_sizes_in_headers_are_not_believed() -> None:
    """BU7: what is counted are the bytes that come out."""
    data = bytearray(zip_of({"main.py": bytes(4 * MIB)}))
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.index(signature) + at, 10)
    assert refusal(bytes(data)).status in (400, 413)


def test_a_huge_directory_is_refused_before_it_is_read() -> None:
    """BU7: a zip whose directory alone would fill the memory."""
    data = bytearray(zip_of({"main.py": "x"}))
    struct.pack_into("<L", data, data.rindex(b"PK\x05\x06") + 12, 90_000_000)
    assert refusal(bytes(data)).code == "payload_too_large"


def test_what_is_no_archive_or_damaged_is_said_so() -> None:
    good = zip_of({"main.py": "x" * 5000})
    tar = tar_of((tar_member("main.py"), b"x" * 5000), mode="w")
    packed = tar_of((tar_member("main.py"), b"x" * 5000))
    assert refusal(b"").code == "unsupported_media_type"
    assert refusal(b"hello").code == "unsupported_media_type"
    for damaged in (good[:100], good[:-30], tar[:1000], packed[:60], packed[:-9], b"\x1f\x8b" + b"x" * 600):
        assert refusal(damaged).code == "validation_failed"
    assert refusal(zip_of({})).code == "validation_failed"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("main.py", "x")
    assert "deflate" in refusal(out.getvalue()).detail
    encrypted = bytearray(good)
    encrypted[good.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(bytes(encrypted)).detail
