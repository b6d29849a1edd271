"""The folder of a run: where it is, and the facts about the run that are written into it."""

from __future__ import annotations

import math
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from resnet_dist.config import RunConfig
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import Resolved
from resnet_dist.errors import UserError
from resnet_dist.run.outcome import Outcome
from resnet_dist.system.files import replace_file
from resnet_dist.system.json_files import append_line, read_lines
from resnet_dist.system.paths import expanded


def run_folder(run: RunConfig) -> Path:
    """`run.dir`, or `runs/<run.name>` below the working directory."""
    return expanded(run.dir, "run.dir") if run.dir else Path("runs") / run.name


def prepare_run_folder(folder: Path, *, needed_bytes: int) -> None:
    """Make the folder and check that it can be written to and has enough free space.

    Raises UserError that names the folder and what is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run.dir ({folder}): cannot be written to ({error.strerror}); give another folder"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"run.dir ({folder}): {free / 2**30:.2f} GiB are free, and the checkpoints need "
            f"{needed_bytes / 2**30:.2f} GiB; free some, lower checkpoint.keep_last, or give "
            f"another folder"
        )


SHUTDOWN_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""How long torchrun waits for ranks that were told to stop before it kills them, seconds; read by
the versions of torch that have --shutdown-timeout."""


def shutdown_timeout_s(folder: Path) -> int:
    """torchrun's 30 s, and three times what the slowest of the latest saves of a run took."""
    records = read_lines(folder / "metrics.jsonl", last_bytes=1 << 20)
    times = [record.get("checkpoint/write_s", 0.0) for record in records]
    slowest = max((each for each in times if isinstance(each, float | int)), default=0.0)
    return 30 + math.ceil(3.0 * slowest)


def write_facts(folder: Path, resolved: Resolved, facts: dict[str, Any]) -> None:
    """Write config.yaml (resolved, with origins) and append this start to starts.jsonl."""
    text = describe(resolved) + "\n"
    replace_file(folder / "config.yaml", lambda file: file.write(text.encode()))
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": sys.argv,
        "launch": _launch_id(),
        **facts,
    }
    append_line(folder / "starts.jsonl", start)


def write_end(folder: Path, outcome: Outcome, facts: dict[str, Any]) -> None:
    """Append to ends.jsonl how this start ended: finished, limited or stopped."""
    end = {"time": time.time(), "outcome": outcome, "launch": _launch_id(), **facts}
    append_line(folder / "ends.jsonl", end)


def _launch_id() -> str | None:
    """Id of torchrun's rendezvous, by which a launcher knows its starts."""
    return os.environ.get("TORCHELASTIC_RUN_ID")
