"""A MOCK of Slurm's commands, for what the real ones (tests/slurm) can hardly be made to say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class MockSlurm:
    """A folder on PATH with shell scripts in the place of Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        """The scripts write down their calls."""
        folder.mkdir()
        self.folder, self.calls = folder, folder / "calls"
        self.calls.touch()

    def answers(self, command: str, out: str = "", *, err: str = "", code: int = 0) -> None:
        """From now on `command` prints this."""
        self.script(command, f"cat <<'END'\n{out}\nEND\ncat >&2 <<'END'\n{err}\nEND\nexit {code}")

    def script(self, command: str, body: str) -> None:
        """From now on `command` is this shell script."""
        path = self.folder / command
        path.write_text(f'#!/bin/sh\necho {command} "$@" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def called(self) -> list[str]:
        """The calls so far."""
        return self.calls.read_text().splitlines()


def mock_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MockSlurm:
    """First on PATH; knows of no job."""
    made = MockSlurm(tmp_path / "mock_slurm")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    gone = "slurm_load_jobs error: Invalid job id specified"
    made.answers("squeue", err=gone, code=1)
    made.answers("scontrol", err=gone, code=1)
    made.answers("sacct", err="Slurm accounting storage is disabled", code=1)
    return made
