"""A mock of nvidia-smi, for the tests of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def mock_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A MOCK of nvidia-smi, a shell script, first on PATH, with two GPUs; write another body."""
    path = tmp_path / "mock" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho 'GPU-a, H100'; echo 'GPU-b, H100'\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path
