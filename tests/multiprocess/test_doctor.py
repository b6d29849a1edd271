"""The doctor under torchrun: real ranks, a real fault, one answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import torchrun

SETTINGS = ["data.loader=synthetic", "dist.device=cpu"]


@pytest.mark.slow  # measures bandwidth
def test_two_ranks_are_examined_together(tmp_path: Path) -> None:
    command = torchrun(2, SETTINGS, module="resnet_dist.doctor")
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    lines = ended.stdout.splitlines()
    assert sum(line.startswith("ok    ranks") for line in lines) == 1
    assert any(line.startswith("ok    all-reduce") for line in lines)
    assert "every rank sees it" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_of_ranks_is_said_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnet_dist", "doctor", "--nproc", "2", *SETTINGS]
    ended = subprocess.run(
        [*command, "dist.world_size=3"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 1
    assert ended.stdout.count("FAIL  process group") == 1
    assert "dist.world_size (3)" in ended.stdout
