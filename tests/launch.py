"""Starting real runs from tests: torchrun with several processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TINY = [
    "model.name=resnet18",
    "model.width=8",
    "model.stem=cifar",
    "data.train_size=24",
    "data.eval_size=24",
    "data.eval_resize_size=28",
    "data.crop_scale=[0.3,1.0]",
    "train.precision=float32",
    "train.global_batch_size=26",
    "train.epochs=5",
    "optim.lr=0.02",
    "schedule.warmup_epochs=1",
    "eval.batch_size=8",
    "log.every_steps=1",
    "dist.timeout_s=60",
]
"""Settings of a run of 20 steps that takes seconds. Neither 3 nor 4 divides the global batch."""

CURVES = ("train/loss", "train/top1", "train/top5", "train/lr", "train/grad_norm")
EXACT = (*CURVES, "val/loss", "val/top1", "val/top5", "val/ema_loss", "epoch")
"""Recorded values that are functions of (config, seed, step); the others are times."""


def command(nproc: int, overrides: list[str], *, module: str = "resnet_dist.train") -> list[str]:
    """The command line of a run."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc_per_node={nproc}", "-m", module, *overrides]


def train(
    nproc: int,
    root: Path,
    run_dir: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run the tiny training on `nproc` processes to its end."""
    arguments = [*TINY, f"data.root={root}", f"run.dir={run_dir}", *overrides]
    result = subprocess.run(
        command(nproc, arguments),
        env=os.environ | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The run's scalar records."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def exact_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records without what depends on the clock."""
    return [
        {key: value for key, value in record.items() if key == "step" or key in EXACT}
        for record in records(run_dir)
    ]


def losses(run_dir: Path) -> list[float]:
    """The training loss of each record, in order."""
    return [record["train/loss"] for record in records(run_dir) if "train/loss" in record]


def newest_checkpoint(run_dir: Path) -> dict[str, Any]:
    """The content of the newest checkpoint."""
    path = max((run_dir / "checkpoints").glob("step_*.pt"))
    return dict(torch.load(path, weights_only=True))


def assert_same_state(first: Any, second: Any, path: str = "") -> None:
    """Both trees of tensors and plain values are equal bit for bit."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same_state(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for position, pair in enumerate(zip(first, second, strict=True)):
            assert_same_state(*pair, f"{path}/{position}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path


STATE = ("step", "model", "optimizer", "scaler", "average", "meter", "best")


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs ended with the same state and wrote the same records, bit for bit."""
    one, two = newest_checkpoint(first), newest_checkpoint(second)
    for key in STATE:
        assert_same_state(one[key], two[key], key)
    assert exact_records(first) == exact_records(second)
