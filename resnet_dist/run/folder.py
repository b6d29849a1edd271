"""The folder of a run: its place, and the facts about the run that are written into it."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from resnet_dist.config import RunConfig
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import Resolved
from resnet_dist.errors import UserError
from resnet_dist.system.files import replace_file

REVISION_FILE = "revision.txt"
"""File in a copy of this package with the git revision that it was copied from."""

_PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "numpy", "omegaconf", "resnet_dist")


def run_folder(run: RunConfig) -> Path:
    """`run.dir`, or `runs/<run.name>` below the working directory."""
    return Path(run.dir).expanduser() if run.dir else Path("runs") / run.name


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


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that compute, and the source tree's revision if there is one."""
    return {**package_versions(), "git": _git_revision()}


def _git_revision() -> str:
    package = Path(__file__).parents[1]
    if (package / REVISION_FILE).exists():
        return (package / REVISION_FILE).read_text().strip()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
    _append_line(folder / "starts.jsonl", start)


def write_end(folder: Path, outcome: str, facts: dict[str, Any]) -> None:
    """Append to ends.jsonl how this start ended: finished, limited or stopped."""
    end = {"time": time.time(), "outcome": outcome, "launch": _launch_id(), **facts}
    _append_line(folder / "ends.jsonl", end)


def _append_line(path: Path, content: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(content) + "\n")


def _launch_id() -> str | None:
    """Id of torchrun's rendezvous, by which a launcher knows its starts."""
    return os.environ.get("TORCHELASTIC_RUN_ID")
