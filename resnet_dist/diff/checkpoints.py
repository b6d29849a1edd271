"""The first checkpoint, and the first tensor in it, in which two runs differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from resnet_dist.checkpoint.files import decode_checkpoint, read_verified
from resnet_dist.diff.parting import Checkpoints, Difference
from resnet_dist.run.checkpoint_files import checkpoint_path, checkpoint_steps

_PARTS = ("model", "optimizer", "average", "scaler", "guard")


def compare(first: Path, second: Path) -> Checkpoints:
    """Compare the checkpoints of the steps that both run folders have."""
    common = sorted(set(checkpoint_steps(first)) & set(checkpoint_steps(second)))
    equal: list[int] = []
    facts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for step in common:
        one, two = (_load(folder, step) for folder in (first, second))
        facts = _facts(one), _facts(two)
        found = [each for part in _PARTS for each in _walk(one.get(part), two.get(part), part)]
        if found:
            return Checkpoints(equal, step, found, facts)
        equal.append(step)
    return Checkpoints(equal, None, [], facts)


def _load(folder: Path, step: int) -> dict[str, Any]:
    path = checkpoint_path(folder, step)
    return decode_checkpoint(read_verified(path), path)


def _facts(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {key: payload.get(key) for key in ("data", "next_batch", "batch_split", "versions")}


def _walk(one: Any, two: Any, where: str) -> Iterator[Difference]:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape != two.shape:
            yield Difference(where, math.inf)
        elif not torch.equal(one, two):
            yield Difference(where, float((one.double() - two.double()).abs().max()))
    elif isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for key in one:
            yield from _walk(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _walk(a, b, f"{where}.{number}")
    elif type(one) is not type(two) or one != two:
        is_nan = isinstance(one, float) and isinstance(two, float)
        if not (is_nan and math.isnan(one) and math.isnan(two)):
            yield Difference(where, math.inf)
