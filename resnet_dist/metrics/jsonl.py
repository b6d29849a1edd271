"""metrics.jsonl: the scalars of a run, one JSON object per line, exact.

    {"step": 150, "epoch": 1.5, "train/loss": 0.5120000243186951, ..., "time": 1760000000.123}

One line is one call of `scalars`, so a step at which the run logs and evaluates has two lines, the
training record first; of the tags only `epoch` is in both. Floats are written so that they read
back bit for bit. JSON has no NaN and no infinities: they are the strings "NaN", "Infinity" and
"-Infinity", which `float()` and `read_records` understand and every JSON reader accepts. `time` is
the clock when the line was written, seconds since 1970.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from resnet_dist.errors import UserError
from resnet_dist.metrics.null import PARTIAL, NullRecorder
from resnet_dist.system.failpoints import failpoint
from resnet_dist.system.files import AppendOnlyFile, replace_file

Record = dict[str, float | int]
"""`step` (int) and numbers by tag."""


class JsonlRecorder(NullRecorder):
    """Appends scalars to a file; a line that a kill cut short is dropped at the next start."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open the file after dropping what it holds beyond `resume_step` (at 0: all).

        Raises UserError if a line before the last one to keep is not a record.
        """
        _drop_after(path, resume_step)
        self._file = AppendOnlyFile(path)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write one line; it survives a kill from now on, and a power cut after `flush`."""
        record = {"step": step, **{tag: _plain(value) for tag, value in values.items()}}
        record["time"] = round(time.time(), 3)
        line = json.dumps(record, allow_nan=False)
        self._file.append(line.encode("ascii") + b"\n")

    def flush(self) -> None:
        failpoint("records.before_jsonl_flush")
        self._file.flush()
        failpoint("records.after_jsonl_flush")

    def close(self) -> None:
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """All records of a file, in order. A last line without an end (being written) is left out.

    Raises FileNotFoundError, or UserError that names the line that is not a record.
    """
    records = []
    for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
        record = _parse(line)
        if record is None:
            raise _not_a_record(path, number)
        records.append(record)
    return records


def _drop_after(path: Path, step: int) -> None:
    """Leave only whole lines of steps <= `step`, and no partial record; replaces the file at once,
    or leaves it alone."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept: list[bytes] = []
    first_unreadable: int | None = None
    for number, line in enumerate(_whole_lines(content), start=1):
        record = _parse(line)
        if record is None:
            first_unreadable = first_unreadable or number
        elif 0 < step >= record["step"] and PARTIAL not in record:
            # A power cut may leave rubbish after the flushed part, never before it.
            if first_unreadable is not None:
                raise _not_a_record(path, first_unreadable)
            kept.append(line)
    rest = b"".join(kept)
    if rest != content:
        replace_file(path, lambda file: file.write(rest))


def _whole_lines(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def _parse(line: bytes) -> Record | None:
    """The record of a line, None if it is not one."""
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or type(values.get("step")) is not int:
            return None
        return {
            tag: float(value) if isinstance(value, str) else value for tag, value in values.items()
        }
    except ValueError:
        return None


def _plain(value: float | int) -> float | int | str:
    """A number that JSON can hold; anything else that `float()` takes becomes a float."""
    if isinstance(value, int):
        return value
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _not_a_record(path: Path, number: int) -> UserError:
    return UserError(
        f"{path} (line {number}): is not a record of resnet_dist; remove the line, or move the "
        f"file away"
    )
