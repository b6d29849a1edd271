"""The benchmarks that build their parts as the trainer does still run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = [
    "data.loader=synthetic",
    "data.train_size=16",
    "model.width=8",
    "train.global_batch_size=4",
    "dist.device=cpu",
]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("loop_overhead.py", ["--steps", "3"], "fit / bare, 3 steps:"),
        ("save_stall.py", ["--pairs", "1", "--every", "2"], "with a save"),
    ],
)
def test_it_runs_in_miniature(script: str, arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / script), *arguments, *TINY, f"run.dir={tmp_path}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
