"""The benchmarks that build their parts as the trainer does still run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
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


@pytest.mark.slow
def test_seeds_of_a_small_run(run_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "seeds.py"), "--config", "quickstart"]
    command += ["--seeds", "2", "--out", str(tmp_path), f"data.root={run_root}", *TINY[1:]]
    command += ["train.max_steps=2", "train.epochs=1", "log.every_steps=1", "data.loader=torch"]
    command += ["train.global_batch_size=54", "schedule.warmup_epochs=0"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["seed 0", "seed 1", "top-1"]
    assert lines[-1].startswith("seconds in all: mean ")
    assert lines[-1].endswith("n = 2")


@pytest.mark.slow
def test_loaders_of_one_image_size(tmp_path: Path, write_image: Callable[..., None]) -> None:
    for split in ("train", "test"):
        for i in range(12):
            write_image(tmp_path / split / "ab"[i % 2] / f"{i}.jpg", 32, 32, seed=i)
    command = [
        sys.executable,
        str(BENCHMARKS / "data" / "memory_loader.py"),
        "--root",
        str(tmp_path),
    ]
    command += ["--rounds", "1", "--seconds", "0.1", "dist.device=cpu", "train.global_batch_size=4"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert result.returncode == 0, result.stderr
    assert "memory / torch: " in result.stdout
