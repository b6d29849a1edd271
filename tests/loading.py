"""Loaders as tests build them: in this process, for one rank, from a config's sections."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_dist.config import AugmentConfig, Config, DaliConfig, DataConfig
from resnet_dist.data.batch import Batch, BatchSpec
from resnet_dist.data.blocked_order import blocks_of
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.index.synthetic import SYNTHETIC_TRAIN, SYNTHETIC_VAL, SyntheticIndex
from resnet_dist.data.loaders.build import build_eval_loader, build_train_loader
from resnet_dist.data.loaders.loader import EvalLoader, TrainLoader
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.specs import SampleTable, TrainSpecs, drop_rates, train_slice

CPU = torch.device("cpu")
SEED = 7
SECTIONS = {"data": DataConfig, "augment": AugmentConfig, "dali": DaliConfig}


def change(config: Config | None = None, **settings: Any) -> Config:
    """The config (by default that of all defaults) with other values of settings of data, augment
    or dali, by their bare names."""
    config = config or Config()
    for section, kind in SECTIONS.items():
        names = {item.name for item in fields(kind)} & set(settings)
        values = {name: settings.pop(name) for name in names}
        if values:
            config = replace(config, **{section: replace(getattr(config, section), **values)})
    assert not settings, f"no such settings: {settings}"
    return config


def open_split(config: Config, split: str = "train") -> Index:
    """The index of a split, made if need be."""
    return open_index(config.data, split, build=True, show_progress=False)


def datasets_of(
    config: Config,
    index: Index | SyntheticIndex | None,
    *,
    global_batch_size: int,
    seed: int = SEED,
) -> Datasets:
    """One index as both splits; None: synthetic ones."""
    order = SampleOrder(
        len(index or SYNTHETIC_TRAIN),
        global_batch_size,
        seed=seed,
        ra_reps=config.augment.ra_reps,
        blocks=blocks_of(config.data, index) if isinstance(index, Index) else None,
    )
    train, val = index or SYNTHETIC_TRAIN, index or SYNTHETIC_VAL
    return Datasets(
        config.data,
        config.augment,
        train,
        val,
        order,
        len(train.classes),
        False,
        drop_rates(config.model),
    )


def train_loader(
    config: Config,
    index: Index | SyntheticIndex | None,
    batch_split: BatchSplit,
    *,
    rank: int = 0,
    num_workers: int = 0,
    device: torch.device = CPU,
    seed: int = SEED,
) -> TrainLoader:
    """The loader of `config.data.loader`."""
    return build_train_loader(
        datasets_of(config, index, global_batch_size=batch_split.global_batch_size, seed=seed),
        config.dali,
        batch_split=batch_split,
        rank=rank,
        device=device,
        num_workers=num_workers,
    )


def train_batches(
    config: Config,
    index: Index | SyntheticIndex | None,
    batch_split: BatchSplit,
    steps: tuple[int, int],
    **kwargs: Any,
) -> Generator[Batch, None, None]:
    """Batches of some steps; further arguments as of `train_loader`."""
    return train_loader(config, index, batch_split, **kwargs).batches(*steps)


def eval_loader(
    config: Config,
    index: Index | None,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> EvalLoader:
    """The loader of `config.data.loader`."""
    datasets = datasets_of(config, index, global_batch_size=1)
    return build_eval_loader(
        datasets.data,
        datasets.val,
        config.dali,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        device=CPU,
        num_workers=num_workers,
    )


def train_spec(
    config: Config,
    table: SampleTable,
    batch_split: BatchSplit,
    *,
    step: int,
    rank: int = 0,
    micro_batch: int = 0,
    seed: int = SEED,
) -> BatchSpec:
    """What a loader of `train_loader` is told about a micro-batch."""
    size, augment = batch_split.global_batch_size, config.augment
    order = SampleOrder(len(table), size, seed=seed, ra_reps=augment.ra_reps)
    one = train_slice(
        order,
        batch_split,
        rank=rank,
        step=step,
        micro_batch=micro_batch,
        is_mixing=augment.is_mixing,
    )
    return TrainSpecs(config.data, augment, table, seed, size)(one)


def assert_same_batch(one: Batch, other: Batch) -> None:
    """To the bit, and laid out alike."""
    assert one.step == other.step
    np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
    assert one.images.dtype == other.images.dtype
    assert one.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert (one.mixed is None) == (other.mixed is None)
    if one.mixed is not None and other.mixed is not None:
        assert torch.equal(one.mixed.paired, other.mixed.paired)
        assert torch.equal(one.mixed.lam, other.mixed.lam)


def denormalise(data: DataConfig, images: torch.Tensor) -> torch.Tensor:
    """Back to 0 to 255, float32."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return (images * std + mean) * 255


def both_splits(folder: Path, images: Path) -> Path:
    """A root in `folder` whose splits are both the class folders of `images`."""
    for split in ("train", "val"):
        (folder / split).symlink_to(images)
    return folder
