"""One shard: from samples to a tar file, the same bytes whenever and wherever it is made.

Owns the layout within a shard, the record that says that a shard is finished, and reading and
checking its images. Runs in a worker process; knows nothing of the other shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.packed import WORK_FOLDER
from resnet_dist.data.read.store import TAR_BLOCK
from resnet_dist.prepare.check import BadImageError, Checked, Options, check
from resnet_dist.prepare.samples import Sample
from resnet_dist.system.files import replace_file

_READ_AHEAD = 8
_END = bytes(2 * TAR_BLOCK)
_COLUMNS = ("ids", "heights", "widths", "lengths", "offsets")


@dataclass(frozen=True)
class Policy:
    """What becomes of images that are not as they should be."""

    skip_bad: bool = False
    """Leave them out; else the shard is not made, and all are reported."""
    keep_damaged: bool = False
    """Keep those that decode to their full size, whatever the decoder complains about."""


@dataclass(frozen=True, slots=True)  # there may be millions
class Item:
    """A sample on its way into a shard."""

    sample_id: int
    """Position in the split."""
    key: str
    """Name in the shard, without suffix and without further dots."""
    cls: int
    sample: Sample


@dataclass(frozen=True)
class Task:
    """A shard to be made."""

    folder: Path
    """The folder of the split."""
    name: str
    items: list[Item]
    options: Options
    policy: Policy

    @cached_property
    def inputs(self) -> str:
        """Digest of all that the shard's bytes follow from."""
        rows = [(i.key, i.cls, i.sample.name, i.sample.length, i.sample.stamp) for i in self.items]
        text = json.dumps([asdict(self.options), rows])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def record_path(self) -> Path:
        """Where the record lies while the split is being prepared."""
        return self.folder / WORK_FOLDER / f"{self.name}.json"


@dataclass
class Record:
    """What is known of a shard when it is made. Columns have one entry per sample, as stored."""

    inputs: str
    policy: dict[str, bool]
    num_bytes: int = 0
    sha256: str = ""
    ids: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reencoded: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    is_kept: bool = False
    """From an earlier call."""

    @property
    def is_made(self) -> bool:
        """Whether there is a shard; else `bad` says why not."""
        return bool(self.sha256)


Count = Callable[[int, int], object]
"""count(images, bytes) for the progress bar."""


def make_shard(task: Task, count: Count) -> Record:
    """Make the shard, or keep the one that an earlier call made. Raises OSError."""
    record = _kept(task)
    if record is not None:
        count(len(task.items), sum(record.lengths))
        return record
    record = Record(task.inputs, asdict(task.policy))
    with contextlib.suppress(_NotToBeMadeError):
        # A kill before its rename leaves a temporary file, which the next call removes. A kill
        # between shard and record leaves a shard that the next call replaces by an equal one.
        replace_file(task.folder / task.name, lambda file: _write(file, task, record, count))
        content = json.dumps({**asdict(record), "is_kept": True}).encode()
        replace_file(task.record_path, lambda file: file.write(content))
    return record


class _NotToBeMadeError(Exception):
    """Bad images, all of them found, in a shard that must not lack any."""


def _kept(task: Task) -> Record | None:
    """The record of a finished shard, if its inputs are the same and its bytes still good."""
    try:
        content: dict[str, Any] = json.loads(task.record_path.read_text())
        record = Record(**content)
        odd = record.bad or record.damaged
        if record.inputs != task.inputs or (odd and record.policy != asdict(task.policy)):
            return None
        with (task.folder / task.name).open("rb") as file:
            is_good = hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        return record if is_good else None
    except (OSError, ValueError, TypeError):
        return None


class _Sink:
    """A file that knows its length and the hash of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.length = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.length += len(data)

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _write(file: BinaryIO, task: Task, record: Record, count: Count) -> None:
    sink = _Sink(file)
    with contextlib.closing(_read(task.items)) as images:
        for item, encoded in images:
            name = item.sample.name
            try:
                checked = _check(encoded, name, task)
            except BadImageError as error:
                record.bad[name] = str(error)
            else:
                _append(sink, record, item, checked)
            count(1, item.sample.length)
    if record.bad and not task.policy.skip_bad:
        raise _NotToBeMadeError
    sink.write(_END)
    record.num_bytes, record.sha256 = sink.length, sink.sha256()


def _check(encoded: NDArray[np.uint8] | OSError, name: str, task: Task) -> Checked:
    if isinstance(encoded, OSError):
        raise BadImageError(f"cannot be read ({encoded.strerror})")
    checked = check(encoded, name, task.options)
    if checked.complaint is not None and not task.policy.keep_damaged:
        raise BadImageError(f"damaged inside ({checked.complaint})")
    return checked


def _append(sink: _Sink, record: Record, item: Item, checked: Checked) -> None:
    _add_file(sink, f"{item.key}.{checked.suffix}", len(checked.content))
    row = (item.sample_id, checked.height, checked.width, len(checked.content), sink.length)
    for column, value in zip(_COLUMNS, row, strict=True):
        getattr(record, column).append(value)
    sink.write(checked.content + bytes(-len(checked.content) % TAR_BLOCK))
    label = str(item.cls).encode()
    _add_file(sink, f"{item.key}.cls", len(label))
    sink.write(label + bytes(-len(label) % TAR_BLOCK))
    if checked.is_reencoded:
        record.reencoded[item.sample.name] = hashlib.sha256(checked.content).hexdigest()
    if checked.complaint is not None:
        record.damaged[item.sample.name] = checked.complaint


def _add_file(sink: _Sink, name: str, length: int) -> None:
    """A header with nothing in it that could differ from time to time. In the GNU format the last
    512 bytes before the content are its header, however long the name is."""
    info = tarfile.TarInfo(name)
    info.size = length
    sink.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))


def _read(items: list[Item]) -> Generator[tuple[Item, NDArray[np.uint8] | OSError], None, None]:
    """The bytes of the samples in turn, with several requests in flight."""
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read") as pool:
        waiting: deque[tuple[Item, Future[NDArray[np.uint8] | OSError]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(_read_one, item.sample)))
            if len(waiting) > 2 * _READ_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _read_one(sample: Sample) -> NDArray[np.uint8] | OSError:
    try:
        descriptor = os.open(sample.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(descriptor, sample.length, sample.offset)
            while 0 < len(content) < sample.length:  # a signal, or more than 2 GiB
                more = os.pread(
                    descriptor, sample.length - len(content), sample.offset + len(content)
                )
                if not more:
                    break
                content += more
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    return np.frombuffer(bytearray(content), dtype=np.uint8)
