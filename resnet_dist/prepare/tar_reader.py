"""Where the members of a tar archive lie, without unpacking it.

Owns the reading of headers, also of a tar inside a tar, and what is refused: archives that are cut
off, and members that are no plain files below the archive's own root. Writes nothing.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.errors import UserError

BLOCK = 512
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_MOST_EXTENSION_BYTES = 1 << 20  # a long name is some hundred bytes; more is an attack on memory


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
    """Of its first byte in the region, bytes."""
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

            yield Region(read, os.fstat(descriptor).st_size, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); give the archive") from None


def bytes_region(content: bytes, name: str) -> Region:
    """A region in memory."""
    return Region(lambda offset, length: content[offset : offset + length], len(content), name)


def list_members(region: Region) -> Iterator[Member]:
    """Its plain files in their order, with names that stay below the root.

    Folders are passed over. Raises UserError for an archive that is cut off or damaged, and for
    members that are links or devices or whose names lead elsewhere.
    """
    at = 0
    long_name: str | None = None
    size: int | None = None
    while True:
        block = region.read(at, BLOCK)
        if len(block) < BLOCK:
            raise _cut_off(region)
        if not any(block):
            return  # the end mark
        info = _parse(region, block, at)
        length = info.size if size is None else size
        at += BLOCK
        if at + length > region.length:
            raise _cut_off(region)
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            payload = _read_extension(region, at, length)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = payload.rstrip(b"\0").decode(errors="surrogateescape")
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = _parse_pax(region, _read_extension(region, at, length))
            long_name = records.get("path", long_name)
            size = int(records["size"]) if "size" in records else None
        elif info.type != tarfile.XGLTYPE:
            name = info.name if long_name is None else long_name
            long_name = size = None
            _check_name(region, name)
            if info.type in _PLAIN:
                yield Member(name.removeprefix("./"), at, length)
            elif info.type != tarfile.DIRTYPE:
                raise UserError(
                    f"{region.name}: the member {name!r} is a link, a device or of an unknown "
                    f"kind; only plain files are taken, so this is not the archive that is wanted"
                )
        at += -(-length // BLOCK) * BLOCK


def _parse(region: Region, block: bytes, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise UserError(
            f"{region.name}: no tar header at byte {at} ({error}): the archive is damaged or no "
            f"(uncompressed) tar; compare its checksum with the publisher's and fetch it again"
        ) from None


def _read_extension(region: Region, at: int, length: int) -> bytes:
    if length > _MOST_EXTENSION_BYTES:
        raise UserError(f"{region.name}: a name of {length} bytes at byte {at}; it is refused")
    payload = region.read(at, length)
    if len(payload) < length:
        raise _cut_off(region)
    return payload


def _parse_pax(region: Region, payload: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n` (POSIX.1-2001, pax extended header)."""
    records: dict[str, str] = {}
    at = 0
    try:
        while at < len(payload) and payload[at]:
            space = payload.index(b" ", at)
            end = at + int(payload[at:space])
            key, separator, value = payload[space + 1 : end - 1].partition(b"=")
            if end <= space or not separator:
                raise ValueError
            records[key.decode()] = value.decode(errors="surrogateescape")
            at = end
        if "size" in records and int(records["size"]) < 0:
            raise ValueError
    except ValueError:
        raise UserError(
            f"{region.name}: a damaged extended header; fetch the archive again"
        ) from None
    if any(key.startswith("GNU.sparse") for key in records):
        raise UserError(f"{region.name}: holds sparse files, which are not taken; pack it anew")
    return records


def _check_name(region: Region, name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or not name:
        raise UserError(
            f"{region.name}: the member {name!r} leads out of the archive's own folder; "
            f"nothing was written; do not trust this archive"
        )


def _cut_off(region: Region) -> UserError:
    return UserError(
        f"{region.name}: is cut off at byte {region.length} (no end-of-archive mark); compare its "
        f"size and checksum with the publisher's and fetch it again"
    )
