"""Recipes in miniature: what our trainer makes of them, and their batches for another trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.data.index.index import Index
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.models.build import build_model
from tests.launch import newest_checkpoint
from tests.loading import change, open_split, train_batches, train_spec
from tests.small_runs import overrides, run, write_pictures

NUM_CLASSES = 4
NUM_STEPS = 50
STEPS_PER_EPOCH = 10
SHORT = [
    "train.global_batch_size=16",
    "train.epochs=5",
    "data.train_size=32",
    "data.eval_size=32",
    "data.eval_resize_size=36",
    "eval.every_epochs=5",
    "checkpoint.every_epochs=5",
    "model.zero_init_last_gamma=true",
]
SETTINGS = {
    "resnet50": [*SHORT, "optim.lr=2e-4", "schedule.milestones=[2,4]"],
    "resnet50_tv_v2": [
        *SHORT,
        "optim.lr=2e-4",
        "schedule.warmup_epochs=1",
        "train.ema_decay=0.9",
        "train.ema_every_steps=4",
    ],
    "resnet50_a3": [*SHORT, "optim.lr=2e-4", "optim.weight_decay=2", "schedule.warmup_epochs=1"],
}
"""50 steps with all that a recipe has: warm-up, decay, mixing, averaging. The rates are so low that
rounding does not grow from step to step (see tests/golden/runs.py); weight decay is the larger for
A3, so that it counts."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Mixing:
    """How the pairs of a batch are mixed, rows 2k and 2k + 1 for pair k."""

    lam: NDArray[np.float32]
    """`[pairs]` weight of the own label, for a cut pair the share of the area that is kept."""
    boxes: NDArray[np.int32]
    """`[pairs, 4]` top, left, height, width."""
    is_cut: NDArray[np.bool_]
    """`[pairs]`"""


@dataclass(frozen=True)
class RawBatch:
    """A global batch before mixing, and what our loader made of it."""

    images: Tensor
    labels: Tensor
    mixing: Mixing | None
    mixed_images: Tensor


@dataclass(frozen=True)
class Case:
    """A recipe, its batches, and where our trainer arrived."""

    config: Config
    initial: State
    batches: list[RawBatch]
    ours: State
    our_average: State | None


def train_ours(recipe: str, folder: Path) -> Case:
    """Run the recipe by its command line, and collect what another trainer needs to follow it."""
    root = folder / "data"
    write_pictures(root, num_classes=NUM_CLASSES, train=41, val=6)
    run(recipe, root, folder / "run", SETTINGS[recipe])
    saved = newest_checkpoint(folder / "run")
    assert saved["step"] == NUM_STEPS
    config = load_config([recipe], overrides(root, SETTINGS[recipe])).config
    model = build_model(config.model, num_classes=NUM_CLASSES, seed=config.seed)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Case(config, initial, list(_raw_batches(config)), saved["model"], saved["average"])


def _raw_batches(config: Config) -> Iterator[RawBatch]:
    index = open_split(config)
    unmixed = change(config, mixup_alpha=0.0, cutmix_alpha=0.0)
    steps = enumerate(zip(_images(unmixed, index), _images(config, index), strict=True))
    for step, ((images, labels), (mixed_images, _)) in steps:
        yield RawBatch(images, labels, _mixing(config, index, step), mixed_images)


def _images(config: Config, index: Index) -> Iterator[tuple[Tensor, Tensor]]:
    split = BatchSplit(config.train.global_batch_size, 1, 1)
    for batch in train_batches(config, index, split, (0, NUM_STEPS), seed=config.seed):
        yield batch.images.clone(), batch.labels.clone()


def _mixing(config: Config, index: Index, step: int) -> Mixing | None:
    split = BatchSplit(config.train.global_batch_size, 1, 1)
    spec = train_spec(config, index, split, step=step, seed=config.seed)
    if spec.mix is None:
        return None
    first = slice(0, None, 2)
    return Mixing(spec.mix.lams[first], spec.mix.boxes[first], spec.mix.is_cut[first])


def difference(case: Case, theirs: State, *, average: bool = False) -> float:
    """How far two trainers ended apart, as a share of the distance that ours went: the larger of
    that of the weights and that of batch norm's statistics."""
    ours = case.our_average if average else case.ours
    assert ours is not None
    floats = [name for name, tensor in ours.items() if tensor.is_floating_point()]
    assert len(floats) == 161 + 2 * 53
    statistics = [name for name in floats if "running" in name]
    weights = [name for name in floats if "running" not in name]
    return max(
        _norm(ours, theirs, names) / _norm(ours, case.initial, names)
        for names in (weights, statistics)
    )


def _norm(left: State, right: State, names: list[str]) -> float:
    squares = [(left[name].double() - right[name].double()).square().sum() for name in names]
    return float(torch.stack(squares).sum().sqrt())
