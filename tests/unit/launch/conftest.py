"""Mocks of Slurm's commands, for the launcher's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.launch.mock_slurm import MockSlurm, mock_slurm


@pytest.fixture
def mock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MockSlurm:
    """Slurm's commands, first on PATH; they know of no job."""
    return mock_slurm(tmp_path, monkeypatch)


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without commands."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
