"""TensorBoard event files that hold every step once, across kills and resumes.

All scalars of a record are one event, so that they are kept or lost together. On resume the old
files lose what they hold of later steps, in place and atomically, and the new file starts with
TensorBoard's restart mark (`purge_step`), so that a TensorBoard that is running and has read the
dropped events forgets them too.

Framing, checksums and reading are TensorBoard's own (RecordWriter, RawEventFileLoader), the files
are ours. `SummaryWriter`, with curves rebuilt from metrics.jsonl at each start, was tried and does
not do:

- It names its file by the host's clock. If that is behind the clock of the host that wrote before,
  a running TensorBoard never moves on to the new file.
- Its old files could not be removed: a running TensorBoard whose file is gone stays there for the
  rest of its life. So event files must be read, filtered and replaced in any case.
- Its writer thread ends at the first full disk with a traceback, and accepts nothing afterwards.
- Records wait in its queue and buffer, where a kill loses them, and it never calls fsync.
"""

from __future__ import annotations

import contextlib
import io
import re
import socket
import time
from collections.abc import Mapping
from os import getpid
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary as torch_summary

from resnet_dist.metrics.null import PARTIAL, NullRecorder, is_validation
from resnet_dist.system.failpoints import failpoint
from resnet_dist.system.files import AppendOnlyFile, replace_file

_FRAME_BYTES = 16
"""Length and two checksums around each event."""


class TensorBoardRecorder(NullRecorder):
    """Appends scalars, images and texts to an event file of its own in `folder`, the run's, by
    whose name TensorBoard calls the run."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        """Drop what the folder's files hold beyond `resume_step` (at 0: all)."""
        folder.mkdir(parents=True, exist_ok=True)
        _move_up(folder)
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
        """Write one event of all values (float32 there); none of a partial record, which could not
        be dropped."""
        if PARTIAL in values:
            return
        if is_validation(values):  # `epoch` is in the training record of that step already
            values = {tag: value for tag, value in values.items() if tag != "epoch"}
        points = [Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def images(self, step: int, tag: str, images: Tensor) -> None:
        """Write `[n, 3, H, W]` uint8 as one picture, eight in a row."""
        self._write_once(step, torch_summary.image(tag, images.cpu(), dataformats="NCHW"))  # type: ignore[no-untyped-call]

    def text(self, step: int, tag: str, text: str) -> None:
        """Write a text; TensorBoard would take it for Markdown, so it becomes a code block."""
        block = "".join(f"    {line}\n" for line in text.splitlines())
        self._write_once(step, torch_summary.text(tag, block))  # type: ignore[no-untyped-call]

    def settings(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Write the values for TensorBoard's HPARAMS page, whose results are the last evaluation's,
        and the layout of its CUSTOM SCALARS page."""
        for summary in torch_summary.hparams(dict(values), dict.fromkeys(_RESULTS, 0.0))[:2]:  # type: ignore[no-untyped-call]
            self._write_once(0, summary)
        self._write_once(0, _layout())

    def flush(self) -> None:
        failpoint("records.before_tensorboard_flush")
        if self._file is not None:
            self._file.flush()
        failpoint("records.after_tensorboard_flush")

    def close(self) -> None:
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
        self._file.append(_framed(event.SerializeToString()))


_RESULTS = ("val/top1", "val/top5", "val/loss")
"""What HPARAMS shows of a run."""

_CHARTS = {
    "Training and validation": {
        "loss": ["train/loss", "val/loss", "val/ema_loss"],
        "top-1": ["train/top1", "val/top1", "val/ema_top1"],
        "learning rate": ["train/lr"],
    },
    "Speed": {
        "images/s": ["train/images_per_second"],
        "share of time waiting for data": ["train/data_wait_share"],
        "memory, GiB": ["train/memory_gib", "train/device_memory_gib"],
    },
    "Health": {
        "gradient norm": ["train/grad_norm"],
        "skipped steps": ["train/skipped_steps"],
    },
}
"""The pages and charts of CUSTOM SCALARS: what belongs together is in one chart."""


def _layout() -> Any:
    pages = {
        title: {
            name: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
            for name, tags in charts.items()
        }
        for title, charts in _CHARTS.items()
    }
    return torch_summary.custom_scalars(pages)  # type: ignore[no-untyped-call]


def _move_up(folder: Path) -> None:
    """Take over the event files of an earlier version, which lie in a folder of their own."""
    old = folder / "tensorboard"
    if old.is_dir():
        for path in event_files(old):
            path.replace(folder / path.name)
        with contextlib.suppress(OSError):  # someone else's file is in there
            old.rmdir()


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder in the order in which they were written."""
    return sorted(folder.glob("events.out.tfevents.*"))


def _drop_after(path: Path, step: int) -> list[Any]:
    """Leave only whole events of steps <= `step` (at 0: the header); returns those with values.

    The bytes that stay are not touched, wall times included. The loader stops at an event that is
    truncated or damaged, as a kill or a power cut leaves it. The file stays even if it is empty: a
    running TensorBoard that has it open would never get past a file that is gone.
    """
    records = [
        (record, Event.FromString(record)) for record in RawEventFileLoader(str(path)).Load()
    ]
    kept = [
        (record, event)
        for record, event in records
        if event.HasField("file_version") or 0 < step >= event.step
    ]
    if sum(len(record) + _FRAME_BYTES for record, _ in kept) != path.stat().st_size:
        content = b"".join(_framed(record) for record, _ in kept)
        replace_file(path, lambda file: file.write(content))
    return [event for _, event in kept if event.HasField("summary")]


def _framed(record: bytes) -> bytes:
    """The serialised event with its length and checksums, as it lies in the file."""
    frame = io.BytesIO()
    RecordWriter(frame).write(record)
    return frame.getvalue()


def _new_file_name(folder: Path) -> str:
    """A name that TensorBoard sorts behind the files there, whatever the clocks of the nodes."""
    newest = max((path.name for path in event_files(folder)), default="")
    second = int(time.time())
    while True:
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{getpid()}.0"
        if name > newest:
            return name
        second += 1
