"""Recipes in miniature: what our trainer makes of them, and their batches for another trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.data.batch import Batch
from resnet_dist.data.index.index import Index
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.models.build import build_model
from tests.loading import change, open_split, train_batches, train_spec
from tests.small_runs import overrides, write_pictures

NUM_CLASSES = 4
NUM_STEPS = 50
STEPS_PER_EPOCH = 10
SHORT = [
    "train.global_batch_size=8",
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
    "resnet50_nvidia_90": [*SHORT, "optim.lr=2e-4", "schedule.warmup_epochs=1"],
    "resnet50_goyal": [
        *SHORT,
        "optim.lr=2e-4",
        "schedule.warmup_epochs=1",
        "schedule.milestones=[2,3,4]",
    ],
    "resnet50_mlperf_3200": [
        *SHORT,
        "optim.lr=0.1",
        "schedule.warmup_epochs=1",
        "train.stop_at_top1=null",
        "eval.first_epoch=null",
    ],
    "resnet50_a2": [*SHORT, "optim.lr=2e-4", "optim.weight_decay=2", "schedule.warmup_epochs=1"],
    "resnet50_a3": [*SHORT, "optim.lr=2e-4", "optim.weight_decay=2", "schedule.warmup_epochs=1"],
}
"""50 steps with all that a recipe has: warm-up, decay, mixing, averaging. The rates are so low that
rounding does not grow from step to step; weight decay is the larger for A3, so that it counts.
Without zero_init_last_gamma it would grow (batch norm over eight values in the last stage): in
float64 too, from 1e-16 to 0.9 in 50 steps of resnet50_tv_v2."""

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
    ours: Batch


def initial_state(config: Config) -> State:
    """The weights that all trainers start from, sampled in float32 as in a real run."""
    with default_dtype(torch.float32):
        model = build_model(config.model, num_classes=NUM_CLASSES, seed=config.seed)
    return model.state_dict()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What models and targets are made in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def prepare(recipe: str, folder: Path) -> tuple[Config, list[RawBatch]]:
    """Make the pictures, and all batches of the recipe."""
    root = folder / "data"
    write_pictures(root, num_classes=NUM_CLASSES, train=21, val=3)
    config = load_config([recipe], overrides(root, SETTINGS[recipe])).config
    return config, list(_raw_batches(config))


def _raw_batches(config: Config) -> Iterator[RawBatch]:
    index = open_split(config)
    unmixed = change(config, mixup_alpha=0.0, cutmix_alpha=0.0)
    steps = enumerate(zip(_batches(unmixed, index), _batches(config, index), strict=True))
    for step, (raw, ours) in steps:
        yield RawBatch(raw.images, raw.labels, _mixing(config, index, step), ours)


def _batches(config: Config, index: Index) -> Iterator[Batch]:
    for batch in train_batches(
        config, index, batch_split(config), (0, NUM_STEPS), seed=config.seed
    ):
        images, labels = batch.images.clone(), batch.labels.clone()  # the loader's memory is reused
        yield replace(batch, images=images, labels=labels, mixed=copy.deepcopy(batch.mixed))


def batch_split(config: Config) -> BatchSplit:
    """One process, one micro-batch per step."""
    return BatchSplit(config.train.global_batch_size, 1, 1)


def _mixing(config: Config, index: Index, step: int) -> Mixing | None:
    mix = train_spec(config, index, batch_split(config), step=step, seed=config.seed).mix
    if mix is None:
        return None
    first = slice(0, None, 2)
    return Mixing(mix.lams[first], mix.boxes[first], mix.is_cut[first])


def difference(ours: State, theirs: State, initial: State) -> float:
    """How far two trainers ended apart, as a share of the distance that ours went: the larger of
    that of the weights and that of batch norm's statistics."""
    floats = [name for name, tensor in ours.items() if tensor.is_floating_point()]
    assert len(floats) == 161 + 2 * 53
    statistics = [name for name in floats if "running" in name]
    weights = [name for name in floats if "running" not in name]
    return max(
        _norm(ours, theirs, names) / _norm(ours, initial, names) for names in (weights, statistics)
    )


def _norm(left: State, right: State, names: list[str]) -> float:
    squares = [(left[name].double() - right[name].double()).square().sum() for name in names]
    return float(torch.stack(squares).sum().sqrt())
