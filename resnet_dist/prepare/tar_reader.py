"""Where the members of a tar archive lie, without unpacking it.

Owns what is refused: archives that are cut off or damaged, and members that are no plain files
below the archive's own root. `tarfile` parses the headers, also of a tar inside a tar. Writes
nothing.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from resnet_dist.errors import UserError

_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"\xfd7zXZ": "unxz"}
_MOST_HEADER_BYTES = 1 << 20  # a long name is some hundred bytes; more is an attack on memory


@dataclass(frozen=True)
class Region:
    """Bytes that hold one tar archive."""

    read: Callable[[int, int], bytes]
    """read(offset, length): fewer bytes only at the end."""
    length: int
    name: str
    """For messages: the option and the path, as in `--train-tar (x.tar)`."""

    def part(self, member: Member) -> Region:
        """The region of a member that is itself a tar archive."""

        def read(offset: int, length: int) -> bytes:
            return self.read(member.offset + offset, max(0, min(length, member.length - offset)))

        return Region(read, member.length, f"{self.name}, {member.name}")


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in an archive."""

    name: str
    offset: int
    """Offset of its first byte in the region, bytes."""
    length: int


@contextmanager
def open_region(path: Path, option: str) -> Iterator[Region]:
    """A file's region, for as long as the block lasts. Raises UserError if it cannot be read."""
    name = f"{option} ({path})"
    try:
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()

            def read(offset: int, wanted: int) -> bytes:
                return os.pread(descriptor, wanted, offset)

            _refuse_compressed(read(0, 8), path, name)
            yield Region(read, os.fstat(descriptor).st_size, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); give the archive") from None


def _refuse_compressed(start: bytes, path: Path, name: str) -> None:
    """Images are read where they lie, which a compressed archive does not allow."""
    for magic, tool in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"{name}: is compressed; unpack it to a plain tar first (`{tool} {path}`), and "
                f"give that: images hardly compress, so it is no larger"
            )


def bytes_region(content: bytes, name: str) -> Region:
    """A region in memory."""
    return Region(lambda offset, length: content[offset : offset + length], len(content), name)


def list_members(region: Region) -> Iterator[Member]:
    """Its plain files in their order, with names that stay below the root.

    Folders are passed over. Raises UserError for an archive that is cut off or damaged, and for
    members that are links or devices or whose names lead elsewhere.
    """
    headers = _Headers(region)
    for info in _parse(headers):
        if info.size < 0:  # tarfile would go backwards and never end
            raise _damaged(region, info.offset)
        if info.offset_data + info.size > region.length:
            raise _cut_off(region)
        _check_name(region, info.name)
        if info.issparse() or any(key.startswith("GNU.sparse") for key in info.pax_headers):
            raise UserError(f"{region.name}: holds sparse files, which are not taken")
        if info.type in _PLAIN:
            yield Member(info.name.removeprefix("./"), info.offset_data, info.size)
        elif info.type != tarfile.DIRTYPE:
            raise UserError(
                f"{region.name}: the member {info.name!r} is a link, a device or of an unknown "
                f"kind; only plain files are taken, so this is not the archive that is wanted"
            )


class _Headers:
    """The file that `tarfile` reads headers from. Refuses to read more than a header can have."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.last_read = 0
        """Offset of the last read, bytes."""
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, length: int) -> bytes:
        if not 0 <= length <= _MOST_HEADER_BYTES:
            raise UserError(
                f"{self.region.name}: a name of {length} bytes at byte {self._at}; it is refused"
            )
        self.last_read = self._at
        content = self.region.read(self._at, length)
        self._at += len(content)
        return content


def _parse(headers: _Headers) -> Iterator[tarfile.TarInfo]:
    """The members up to the end mark, a block of zeros, where `tarfile` also stops at a header that
    it cannot read or does not find."""
    region = headers.region
    try:
        archive = tarfile.TarFile(
            fileobj=cast(IO[bytes], headers), encoding="utf-8", errors="surrogateescape"
        )
        while (info := archive.next()) is not None:
            yield info
    except UserError:
        raise
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError):
        raise _unreadable(region, headers.last_read) from None
    mark = region.read(archive.offset, tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise _unreadable(region, archive.offset)


def _check_name(region: Region, name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or not name:
        raise UserError(
            f"{region.name}: the member {name!r} leads out of the archive's own folder; "
            f"nothing was written; do not trust this archive"
        )


def _unreadable(region: Region, at: int) -> UserError:
    is_short = at + tarfile.BLOCKSIZE > region.length
    return _cut_off(region) if is_short else _damaged(region, at)


def _damaged(region: Region, at: int) -> UserError:
    return UserError(
        f"{region.name}: no tar header at byte {at}: the archive is damaged or no (uncompressed) "
        f"tar; compare its checksum with the publisher's and fetch it again"
    )


def _cut_off(region: Region) -> UserError:
    return UserError(
        f"{region.name}: is cut off at byte {region.length} (no end-of-archive mark); compare its "
        f"size and checksum with the publisher's and fetch it again"
    )
