"""Members of tar archives: all kinds are read, and no damage to a header or an end is missed."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from resnet_dist.errors import UserError
from resnet_dist.prepare.tar_reader import Region, bytes_region, list_members
from tests.archives import tar_bytes

FILES = {f"n01440764_{i}.JPEG": random.Random(i).randbytes(i * 97 % 1500) for i in range(40)}


@pytest.mark.parametrize("format", [0, 1, 2])  # ustar, GNU, pax
def test_every_kind_of_tar_is_read(format: int) -> None:
    long = "d" * 90 + "/" + "n" * 90 + ".jpg"
    files = {"a.jpg": b"one", long: b"x" * 513, "./b.jpg": b"", "c.jpg": b"y" * 512}
    if format == 2:
        files["\u4e2d" * 60 + ".jpg"] = b"pax"
    region = bytes_region(tar_bytes(files, format=format), "x")
    members = list(list_members(region))
    found = {member.name: region.read(member.offset, member.length) for member in members}
    assert found == {name.removeprefix("./"): content for name, content in files.items()}


def read_all(region: Region) -> dict[str, bytes]:
    return {one.name: region.read(one.offset, one.length) for one in list_members(region)}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_archive_that_is_cut_off_is_refused(format: int) -> None:
    files = FILES | {"\u4e2d" * 30 + ".JPEG": b"a long name"}
    content = tar_bytes(files, format=format)
    end = content.rindex(b"a long name") // 512 * 512 + 512
    random_ = random.Random(format)
    for _ in range(200):
        cut = random_.randrange(end + 512)
        with pytest.raises(UserError, match="is cut off at byte"):
            read_all(bytes_region(content[:cut], "x"))
    assert read_all(bytes_region(content[: end + 512], "x")) == files


def headers_of(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [info.offset for info in archive]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_no_damaged_header_is_missed(format: int) -> None:
    """One byte of a header is another: refused, or it does not matter."""
    content = tar_bytes(FILES, format=format)
    headers, random_ = headers_of(content), random.Random(format)
    num_refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        at = random_.choice(headers) + random_.randrange(512)
        damaged[at] ^= random_.randrange(1, 256)
        try:
            assert read_all(bytes_region(bytes(damaged), "x")) == FILES
        except UserError:
            num_refused += 1
    assert num_refused > 190


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "content",
    [
        header("a", -512),
        header("a", -1),
        header("a", 1 << 62),
        header("a", -512, tarfile.DIRTYPE),
        header("a", -512, tarfile.GNUTYPE_LONGNAME),
        header("a", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        header("a", -512, tarfile.XHDTYPE),
        header("a", 1 << 40, tarfile.XGLTYPE),
        header("a", 12, tarfile.XHDTYPE) + b"12 size=-512\n".ljust(512, b"\0") + header("b", 0),
        header("a", 13, tarfile.XHDTYPE) + b"13 size=-512\n".ljust(512, b"\0") + header("b", 0),
        header("a", 0, tarfile.GNUTYPE_SPARSE),
        header("a", 2, tarfile.GNUTYPE_LONGNAME) + b"b".ljust(512, b"\0"),
        (header("a", 2, tarfile.GNUTYPE_LONGNAME) + b"b".ljust(512, b"\0")) * 3000,
    ],
    ids=lambda content: f"{content[156:157]!r}{len(content)}",
)
def test_sizes_that_would_mislead_are_refused(content: bytes) -> None:
    """Sizes come from a header or from an extended one; negative ones would lead backwards."""
    with pytest.raises(UserError, match=r"^x: "):
        read_all(bytes_region(content + bytes(1024), "x"))


def test_a_negative_size_from_an_extended_header_is_refused() -> None:
    info = tarfile.TarInfo("b")
    info.pax_headers = {"size": "-512"}
    content = info.tobuf(tarfile.PAX_FORMAT)
    with pytest.raises(UserError, match="no tar header at byte"):
        read_all(bytes_region(content + bytes(1024), "x"))


def test_sparse_files_are_refused() -> None:
    info = tarfile.TarInfo("b")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b"}
    info.size = 512
    content = info.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0")
    with pytest.raises(UserError, match="holds sparse files"):
        read_all(bytes_region(content + bytes(1024), "x"))


def test_a_tar_inside_a_tar_does_not_read_beyond_its_end() -> None:
    inner = tar_bytes(FILES)
    outer = bytes_region(tar_bytes({"a.tar": inner, "b.tar": inner[:2000]}), "x")
    whole, cut = (outer.part(member) for member in list_members(outer))
    assert read_all(whole) == FILES
    with pytest.raises(UserError, match=r"x, b.tar: is cut off at byte 2000"):
        read_all(cut)
