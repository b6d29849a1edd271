"""The process group: who we are among the ranks, and the few collectives that are not DDP's.

Owns start and stop of torch.distributed. Every function named `sync_*` is a collective: all ranks
must call it, in the same order. With one process there is no group, and they return at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from resnet_dist.config import DistConfig
from resnet_dist.errors import AgreedError, UserError

T = TypeVar("T")

_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """This process among all of them. Made once, passed down."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0


def launched_ranks() -> tuple[int, int, int, int]:
    """(rank, world_size, local_rank, local_world_size) as torchrun gave them; one process else."""
    present = [name in os.environ for name in _LAUNCH_VARIABLES]
    if not any(present):
        return 0, 1, 0, 1
    if not all(present):
        missing = [name for name in _LAUNCH_VARIABLES if name not in os.environ]
        raise UserError(
            f"environment ({', '.join(missing)}): not set although other variables of torchrun "
            f"are; start with `torchrun --nproc_per_node N -m resnet_dist.train`"
        )
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in _LAUNCH_VARIABLES)
    return rank, size, local_rank, local_size


def start(config: DistConfig) -> World:
    """Join the process group that torchrun prepared (none for one process) and pick the device.

    Raises UserError if the world is not of the size that the config insists on.
    """
    rank, size, local_rank, local_size = launched_ranks()
    if config.world_size is not None and size != config.world_size:
        raise UserError(
            f"dist.world_size ({config.world_size}): but {size} processes were started; start as "
            f"many as that, or set dist.world_size=null"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--nproc_per_node ({local_size}): more processes than the "
                f"{torch.cuda.device_count()} visible GPUs; start one process a GPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    return World(rank, size, local_rank, local_size, device)


def stop(world: World) -> None:
    """Leave the process group. On failure paths exit instead, and the agent ends the peers."""
    if world.size > 1:
        dist.destroy_process_group()


def threads_per_rank(local_size: int) -> int:
    """CPU cores of this process's share of the node, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


def sync_attempt(world: World, function: Callable[[], T]) -> T:
    """Run a function on every rank; if it raises UserError on any, raise that on all.

    So that a rank that found bad input does not leave the others waiting in the next collective.
    """
    result: T | None = None
    message: str | None = None
    try:
        result = function()
    except UserError as error:
        if world.size == 1:
            raise
        message = str(error)
    if world.size > 1:
        messages: list[str | None] = [None] * world.size
        dist.all_gather_object(messages, message)
        failed = [text for text in messages if text is not None]
        if failed:
            raise AgreedError("\n".join(dict.fromkeys(failed)))
    return result  # type: ignore[return-value]


def sync_barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier()


def sync_sum_(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def sync_broadcast_object(value: Any, world: World) -> Any:
    """Rank 0's small picklable value, on all ranks."""
    if world.size == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def sync_broadcast_bytes(data: bytes | bytearray | None, world: World) -> bytes | bytearray:
    """Rank 0's bytes, on all ranks; the others pass None."""
    if world.size == 1:
        assert data is not None
        return data
    length = sync_broadcast_object(len(data) if data is not None else None, world)
    buffer = bytearray(data) if data is not None else bytearray(length)
    if length:
        dist.broadcast(torch.frombuffer(buffer, dtype=torch.uint8), src=0)
    return buffer


def sync_broadcast_(tensors: list[torch.Tensor], world: World) -> None:
    """Overwrite tensors with rank 0's."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
