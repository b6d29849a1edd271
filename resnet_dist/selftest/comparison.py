"""Are two runs equal: weights, optimizer, moving average, counts and every record?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from resnet_dist.metrics.jsonl import read_records
from resnet_dist.metrics.null import depends_on_clock
from resnet_dist.run.checkpoint_files import newest_step

STATE = ("step", "model", "optimizer", "scaler", "average", "meter", "guard", "losses", "best")
"""The parts of a checkpoint that are functions of (config, seed, step)."""


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs that should be equal bit for bit."""
    steps = newest_step(one), newest_step(other)
    if steps[0] != steps[1] or steps[0] == 0:
        return [f"{one} ended at step {steps[0]}, {other} at step {steps[1]}"]
    states = [
        torch.load(run / "checkpoints" / f"step_{steps[0]:08d}.pt", weights_only=True)
        for run in (one, other)
    ]
    found = [
        text for key in STATE for text in _tree_differences(states[0][key], states[1][key], key)
    ]
    records = [exact_records(run) for run in (one, other)]
    if records[0] != records[1]:
        lines = [line for line in records[1] if line not in records[0]]
        found.append(f"records differ: {lines[:3] or 'some are missing'}")
    return [f"{other}: {text}" for text in found]


def exact_records(run_dir: Path) -> list[dict[str, str]]:
    """The records without what depends on the clock. NaN is equal to itself here."""
    return [
        {key: repr(value) for key, value in record.items() if not depends_on_clock(key)}
        for record in read_records(run_dir / "metrics.jsonl")
    ]


def _tree_differences(one: Any, other: Any, path: str) -> list[str]:
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} against {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: other keys"]
        return [t for key in one for t in _tree_differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} against {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [t for i, (a, b) in pairs for t in _tree_differences(a, b, f"{path}/{i}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{path}: tensors differ"]
    is_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return [] if one == other or is_nan else [f"{path}: {one!r} against {other!r}"]
