"""From opened data sets to loaders: one backend per loader, chosen by `data.loader`."""

from __future__ import annotations

import torch

from resnet_dist.config import DaliConfig, DataConfig
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import Index
from resnet_dist.data.index.synthetic import SyntheticIndex
from resnet_dist.data.loaders.choice import choose_loader
from resnet_dist.data.loaders.loader import Backend, EvalLoader, TrainLoader
from resnet_dist.data.loaders.memory_backend import MemoryBackend
from resnet_dist.data.loaders.synthetic_backend import SyntheticBackend
from resnet_dist.data.loaders.torch_backend import TorchBackend
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.specs import EvalSpecs, Specs, largest_batch


def build_train_loader(
    datasets: Datasets,
    dali: DaliConfig,
    *,
    batch_split: BatchSplit,
    rank: int,
    device: torch.device,
    num_workers: int,
) -> TrainLoader:
    """The loader that trains.

    Raises UserError if DALI is missing, or data.loader=memory does not suit the data.
    """
    is_mixing = datasets.augment.is_mixing
    backend = build_backend(
        datasets.train,
        datasets.train_specs,
        dali,
        most=largest_batch(batch_split, is_mixing=is_mixing),
        device=device,
        num_workers=num_workers,
    )
    return TrainLoader(
        backend, datasets.order, batch_split=batch_split, rank=rank, is_mixing=is_mixing
    )


def build_eval_loader(
    data: DataConfig,
    val: Index | SyntheticIndex,
    dali: DaliConfig,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    num_workers: int,
) -> EvalLoader:
    """The loader that evaluates. Raises UserError as `build_train_loader`."""
    num_samples = len(val)
    backend = build_backend(
        val,
        EvalSpecs(data, val),
        dali,
        most=min(batch_size, num_samples),
        device=device,
        num_workers=num_workers,
    )
    return EvalLoader(
        backend,
        num_samples=num_samples,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )


def build_backend(
    index: Index | SyntheticIndex,
    specs: Specs,
    dali: DaliConfig,
    *,
    most: int,
    device: torch.device,
    num_workers: int,
) -> Backend:
    """What makes the batches of a split, of `most` samples each at most."""
    if isinstance(index, SyntheticIndex):
        return SyntheticBackend(specs, len(index.classes), most=most, device=device)
    match choose_loader(specs.data, device):
        case "dali":  # imported only where DALI is wanted
            from resnet_dist.data.loaders.dali_backend import DaliBackend

            return DaliBackend(
                index, specs, dali, most=most, device=device, num_workers=num_workers
            )
        case "memory":
            return MemoryBackend(index, specs, most=most, device=device, num_workers=num_workers)
        case _:
            return TorchBackend(index, specs, most=most, device=device, num_workers=num_workers)
