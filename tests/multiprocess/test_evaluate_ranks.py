"""`resnet-dist evaluate` gives the same numbers for any number of ranks, and refuses once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import train


def evaluate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "resnet_dist", "evaluate", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_one_two_and_three_ranks(run_root: Path, tmp_path: Path) -> None:
    train(1, run_root, tmp_path / "run", "train.max_steps=6", "train.ema_decay=0.9")
    found = []
    for nproc in (1, 2, 3):
        ended = evaluate(str(tmp_path / "run"), "--format=json", f"--nproc={nproc}")
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout))
    assert found[0] == found[1] == found[2]  # every digit, mistakes and loss included
    ended = evaluate(str(tmp_path / "none.pt"), "--nproc=2")
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if line.startswith("error:")] == [
        f"error: weights ({tmp_path / 'none.pt'}): no such file; give a file (.pt, .pth, "
        f".safetensors), or torchvision:IMAGENET1K_V2"
    ]
