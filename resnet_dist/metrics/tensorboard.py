"""TensorBoard event files that hold every step once, across kills and resumes.

Written here record by record with TensorBoard's own format rather than with `SummaryWriter`, whose
background thread holds records back in a queue, cannot be asked to reach the disk, and dies with
the first full disk. All scalars of a record are one event, so that they are kept or lost together.

On resume the old files lose what they hold of later steps, in place and atomically, and the new
file starts with TensorBoard's restart mark (`purge_step`), so that a TensorBoard that is running
and has read the dropped events forgets them too.
"""

from __future__ import annotations

import io
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from os import getpid
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from torch import Tensor
from torch.utils.tensorboard import summary as torch_summary

from resnet_dist.metrics.null import NullRecorder
from resnet_dist.system.append import AppendOnlyFile
from resnet_dist.system.failpoints import failpoint
from resnet_dist.system.files import replace_file

_HEADER = struct.Struct("<QI")  # length of the event, masked CRC-32C of the length
_CHECKSUM = struct.Struct("<I")  # masked CRC-32C of the event


class TensorBoardRecorder(NullRecorder):
    """Appends scalars, images and texts to an event file of its own in `folder`."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        """Drop what the folder's files hold beyond `resume_step` (at 0: all)."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = _new_file_name(folder)  # sorts behind those that are dropped, too
        self._purge_step = resume_step + 1 if resume_step else 0
        self._newest: dict[str, int] = {}
        """The last step of each image and text that is in the files."""
        for path in event_files(folder):
            for event in _drop_after(path, resume_step):
                self._newest |= {value.tag: event.step for value in event.summary.value}
        self._file: AppendOnlyFile | None = None

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write one event of all values (float32 there)."""
        points = [Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def images(self, step: int, tag: str, images: Tensor) -> None:
        """Write `[n, 3, H, W]` uint8 as one picture, eight in a row."""
        self._write_once(step, torch_summary.image(tag, images.cpu(), dataformats="NCHW"))  # type: ignore[no-untyped-call]

    def text(self, step: int, tag: str, text: str) -> None:
        """Write a text; TensorBoard would take it for Markdown, so it becomes a code block."""
        block = "".join(f"    {line}\n" for line in text.splitlines())
        self._write_once(step, torch_summary.text(tag, block))  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """See `Recorder.flush`."""
        failpoint("records.before_tensorboard_flush")
        if self._file is not None:
            self._file.flush()
        failpoint("records.after_tensorboard_flush")

    def close(self) -> None:
        """See `Recorder.close`."""
        if self._file is not None:
            self._file.close()

    def _write_once(self, step: int, summary: Any) -> None:
        """Write images or a text, unless a start before this one did."""
        (value,) = summary.value
        if self._newest.get(value.tag, -1) < step:
            self._newest[value.tag] = step
            self._write(Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        if self._file is None:  # a start that records nothing leaves no file
            self._file = AppendOnlyFile(self._folder / self._name)
            mark = SessionLog(status=SessionLog.START)
            self._append(Event(file_version="brain.Event:2"))
            self._append(Event(step=self._purge_step, session_log=mark))
        self._append(event)

    def _append(self, event: Any) -> None:
        assert self._file is not None
        event.wall_time = time.time()
        frame = io.BytesIO()
        RecordWriter(frame).write(event.SerializeToString())
        self._file.append(frame.getvalue())


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder in the order in which they were written."""
    return sorted(folder.glob("events.out.tfevents.*"))


def read_frames(content: bytes) -> Iterator[tuple[bytes, Any]]:
    """The whole events of a file: (the bytes as they are in the file, the parsed event).

    Stops at the first one that is truncated or damaged, as a kill or a power cut leaves it.
    """
    start = 0
    while start + _HEADER.size <= len(content):
        length, length_checksum = _HEADER.unpack_from(content, start)
        data_start = start + _HEADER.size
        end = data_start + length + _CHECKSUM.size
        if masked_crc32c(content[start : start + 8]) != length_checksum or end > len(content):
            return
        data = content[data_start : end - _CHECKSUM.size]
        if masked_crc32c(data) != _CHECKSUM.unpack_from(content, end - _CHECKSUM.size)[0]:
            return
        yield content[start:end], Event.FromString(data)
        start = end


def _drop_after(path: Path, step: int) -> list[Any]:
    """Leave only whole events of steps <= `step` (at 0: the header); returns those with values.

    The bytes that stay are not touched, wall times included. The file stays even if it is empty:
    a running TensorBoard that has it open would never get past a file that is gone.
    """
    content = path.read_bytes()
    kept = [
        (frame, event)
        for frame, event in read_frames(content)
        if event.HasField("file_version") or 0 < step >= event.step
    ]
    rest = b"".join(frame for frame, _ in kept)
    if rest != content:
        replace_file(path, lambda file: file.write(rest))
    return [event for _, event in kept if event.HasField("summary")]


def _new_file_name(folder: Path) -> str:
    """A name that TensorBoard sorts behind the files there, whatever the clocks of the nodes."""
    newest = max((path.name for path in event_files(folder)), default="")
    second = int(time.time())
    while True:
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{getpid()}.0"
        if name > newest:
            return name
        second += 1
