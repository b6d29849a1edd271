"""The data path for those who train: open the data, choose a loader, build it.

Owns the choice among loaders. Everything that the loop needs from `resnet_dist.data` is here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from typing import Literal, Protocol

import torch

from resnet_dist.config import DataConfig
from resnet_dist.data.batch import Batch, BatchSpec
from resnet_dist.data.blocked_order import Blocks, blocks_of
from resnet_dist.data.index.index import Index, check_splits, open_index
from resnet_dist.data.index.places import cache_root
from resnet_dist.data.loaders.memory_loader import MemoryEvalLoader, MemoryTrainLoader
from resnet_dist.data.loaders.synthetic import (
    SYNTHETIC_TRAIN,
    SYNTHETIC_VAL,
    SyntheticEvalLoader,
    SyntheticIndex,
    SyntheticTrainLoader,
)
from resnet_dist.data.loaders.torch_loader import TorchEvalLoader, TorchTrainLoader
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import (
    digest_of_step,
    eval_spec,
    sample_ids_of_step,
    steps_per_epoch,
    train_spec,
)
from resnet_dist.errors import UserError
from resnet_dist.system import workers

__all__ = [
    "SYNTHETIC_TRAIN",
    "SYNTHETIC_VAL",
    "Batch",
    "BatchSpec",
    "Blocks",
    "EvalLoader",
    "Index",
    "SyntheticIndex",
    "TrainLoader",
    "blocks_of",
    "build_eval_loader",
    "build_train_loader",
    "cache_root",
    "check_splits",
    "choose_loader",
    "digest_of_step",
    "eval_spec",
    "open_index",
    "sample_ids_of_step",
    "start_loader_server",
    "steps_per_epoch",
    "train_spec",
]


class TrainLoader(Protocol):
    """This rank's micro-batches of any range of steps."""

    @property
    def name(self) -> str:
        """dali, torch, memory or synthetic."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        ...

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """Steps [start_step, stop_step) in order, each step's micro-batches in order. Starts
        anywhere at once. A generator: closing it ends the loader's processes or threads."""
        ...


class EvalLoader(Protocol):
    """This rank's batches of one evaluation."""

    @property
    def name(self) -> str:
        """dali, torch, memory or synthetic."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches over all ranks."""
        ...

    def batches(self) -> Generator[Batch, None, None]:
        """Batch k goes to rank k % world_size, whole, so that results do not depend on the world
        size; `Batch.step` is k. Every sample is in one batch of one rank."""
        ...


def choose_loader(
    data: DataConfig, device: torch.device
) -> Literal["dali", "torch", "memory", "synthetic"]:
    """The loader that `data.loader` stands for on a device: auto is dali on a GPU, torch on CPU.

    Raises UserError if that is dali and DALI is not installed.
    """
    name = data.loader
    if name == "auto":
        name = "dali" if device.type == "cuda" else "torch"
    if name == "dali" and not _is_dali_installed():
        raise UserError(
            f"data.loader ({data.loader}): NVIDIA DALI is not installed; install "
            f"nvidia-dali-cuda130, or set data.loader=torch"
        )
    return name


def start_loader_server(data: DataConfig, device: torch.device) -> None:
    """Begin to start what the torch loader's processes are forked from, also those that fill the
    memory loader; returns at once."""
    if choose_loader(data, device) in ("torch", "memory"):
        workers.start_server()


def _is_dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the package above it
        return False


def build_train_loader(
    data: DataConfig,
    index: Index | SyntheticIndex | None,
    *,
    batch_split: BatchSplit,
    seed: int,
    rank: int,
    device: torch.device,
    num_workers: int,
) -> TrainLoader:
    """The loader that trains. `index` may be None for synthetic data.

    Raises UserError if the data are fewer than one global batch, DALI is missing, or data.order or
    data.loader=memory does not suit the data.
    """
    name = choose_loader(data, device)
    if name == "synthetic":
        synthetic = index if isinstance(index, SyntheticIndex) else SYNTHETIC_TRAIN
        return SyntheticTrainLoader(
            data, synthetic, batch_split=batch_split, seed=seed, rank=rank, device=device
        )
    assert isinstance(index, Index), "only the synthetic loader works without an index"
    blocks_of(data, index)  # raises here, not in a reader
    build: Callable[..., TrainLoader] = MemoryTrainLoader if name == "memory" else TorchTrainLoader
    if name == "dali":
        from resnet_dist.data.loaders.dali_loader import (
            DaliTrainLoader,  # only where DALI is wanted
        )

        build = DaliTrainLoader
    return build(
        data,
        index,
        batch_split=batch_split,
        seed=seed,
        rank=rank,
        device=device,
        num_workers=num_workers,
    )


def build_eval_loader(
    data: DataConfig,
    index: Index | SyntheticIndex | None,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    num_workers: int,
) -> EvalLoader:
    """The loader that evaluates. `index` may be None for synthetic data."""
    name = choose_loader(data, device)
    if name == "synthetic":
        synthetic = index if isinstance(index, SyntheticIndex) else SYNTHETIC_VAL
        return SyntheticEvalLoader(
            data,
            synthetic,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
        )
    assert isinstance(index, Index), "only the synthetic loader works without an index"
    build: Callable[..., EvalLoader] = MemoryEvalLoader if name == "memory" else TorchEvalLoader
    if name == "dali":
        from resnet_dist.data.loaders.dali_loader import DaliEvalLoader  # only where DALI is wanted

        build = DaliEvalLoader
    return build(
        data,
        index,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        device=device,
        num_workers=num_workers,
    )
