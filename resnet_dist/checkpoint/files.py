"""One checkpoint file: written completely or not at all, verified when it is read.

A file is what `torch.save` makes, a zip archive, whose archive comment holds the SHA-256 of
everything before it. So `torch.load(path, weights_only=True)` reads it anywhere, and any change of
any byte is noticed here.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from resnet_dist.checkpoint.direct import DirectWriter
from resnet_dist.errors import UserError
from resnet_dist.system.failpoints import failpoint
from resnet_dist.system.files import replace_file

FORMAT = 1
_PREFIX = b"sha256:"
_COMMENT_BYTES = len(_PREFIX) + 64
_END_RECORD_BYTES = 22  # of a zip archive without comment
_END_SIGNATURE = b"PK\x05\x06"


_CONTENT: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "optimizer", "scaler", "guard", "best"), dict),
    **dict.fromkeys(("config", "data", "batch_split", "versions"), dict),
    "average": (dict, type(None)),
    "classes": list,
    "step": int,
    "num_classes": int,
}
"""What every checkpoint holds, by key."""


class CorruptCheckpointError(UserError):
    """The file is not what was written: truncated, altered, or never finished."""


class _HashingWriter(io.RawIOBase):
    """Forwards to a file and hashes what passes."""

    def __init__(self, file: DirectWriter, *, is_trial: bool) -> None:
        super().__init__()
        self._file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None
        """Why a write failed; torch.save raises something else then."""
        self._is_trial = is_trial
        self._num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._num_bytes and not self._is_trial:
            failpoint("checkpoint.mid_write")
        self.sha256.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._num_bytes += len(data)
        return len(data)


def write_checkpoint(
    path: Path,
    payload: dict[str, Any],
    *,
    is_trial: bool = False,
    before_commit: Callable[[], object] | None = None,
) -> None:
    """Serialise, make durable, and give the file its name. Raises OSError (for example ENOSPC).

    `payload` holds tensors and plain containers only, so that it loads with `weights_only=True`.
    A trial passes no failpoints. `before_commit` is called before the file gets its name; if it
    raises, it gets none.
    """

    def write(file: BinaryIO) -> None:
        with closing(DirectWriter(file)) as direct:
            writer = _HashingWriter(direct, is_trial=is_trial)
            try:
                torch.save({"format": FORMAT, **payload}, cast("IO[bytes]", writer))
            except Exception as error:
                raise (writer.error or error) from None
            direct.finish()
        _append_checksum(file, writer.sha256.hexdigest())

    def at_stage(stage: str) -> None:
        if stage == "before_rename" and before_commit is not None:
            before_commit()
        if not is_trial:
            failpoint(f"checkpoint.{stage}")

    # Retention runs only after this, so a power cut never leaves fewer than the older ones.
    replace_file(path, write, at_stage=at_stage)


def _append_checksum(file: BinaryIO, digest: str) -> None:
    """Turn the last field of the zip end record, the comment's length, and append the comment."""
    file.seek(-_END_RECORD_BYTES, os.SEEK_END)
    end_record = file.read(_END_RECORD_BYTES)
    assert end_record.startswith(_END_SIGNATURE), "torch.save no longer writes a plain zip archive"
    assert end_record.endswith(b"\0\0")
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _COMMENT_BYTES) + _PREFIX + digest.encode("ascii"))


def read_verified(path: Path) -> bytearray:
    """The file's bytes, checked against its checksum.

    Raises CorruptCheckpointError, or OSError if it cannot be read.
    """
    buffer = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        length = file.readinto(buffer)
    body, comment = buffer[:-_COMMENT_BYTES], buffer[-_COMMENT_BYTES:]
    if length != len(buffer) or len(body) < _END_RECORD_BYTES or not comment.startswith(_PREFIX):
        raise CorruptCheckpointError(
            f"checkpoint ({path}): has no checksum at its end, so it is truncated or was not "
            f"written by resnet_dist; use another one"
        )
    length_field = bytes(body[-2:])
    body[-2:] = b"\0\0"  # as it was when it was hashed
    digest = hashlib.sha256(body).hexdigest().encode("ascii")
    if comment != _PREFIX + digest or length_field != struct.pack("<H", _COMMENT_BYTES):
        raise CorruptCheckpointError(
            f"checkpoint ({path}): its bytes do not match its checksum; use another one"
        )
    return buffer


def decode_checkpoint(data: bytes | bytearray, path: Path) -> dict[str, Any]:
    """Unpickle verified bytes, tensors on the CPU. Raises UserError for a foreign file."""
    try:
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for what it cannot read
        raise UserError(
            f"checkpoint ({path}): torch cannot read it ({type(error).__name__}); use another one"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        raise UserError(
            f"checkpoint ({path}): is of format {found!r}, and this version reads format "
            f"{FORMAT}; use the version of resnet_dist that wrote it"
        )
    return payload


def check_content(payload: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless a payload has what every checkpoint of a training holds."""
    wrong = [key for key, kind in _CONTENT.items() if not isinstance(payload.get(key, ...), kind)]
    if wrong:
        raise UserError(
            f"checkpoint ({path}): lacks {', '.join(wrong)}, or holds something else there: it is "
            f"no checkpoint of a training; use another one"
        )


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what a killed writer left. Only the owner of the folder may call this."""
    leftovers = sorted(folder.glob(".*.tmp"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers
