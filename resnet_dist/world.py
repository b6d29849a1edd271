"""The process group: who we are among the ranks, and the few collectives that are not DDP's.

Owns start and stop of torch.distributed. Every function named `sync_*` is a collective: all ranks
must call it, in the same order. With one process there is no group, and they return at once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from resnet_dist.config import DistConfig
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.system.processes import die_with_parent
from resnet_dist.system.ranks import is_started_by_torchrun, launched_ranks

P = ParamSpec("P")
T = TypeVar("T")

FLIGHT_RECORDER_FOLDER = "flight_recorder"
"""In the run folder; the file of a rank is `rank_<rank>`, for torch's `fr_trace`."""


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


def start_process_group(config: DistConfig, run_folder: Path | None = None) -> World:
    """Join the process group that torchrun prepared (none for one process) and pick the device.

    From now on this process dies with torchrun's. A collective that times out on GPUs leaves a
    record of the last ones in `run_folder`, if that is given.
    Raises UserError if the world is not of the size that the config insists on.
    """
    if is_started_by_torchrun():
        die_with_parent()
    rank, size, local_rank, local_size = launched_ranks()
    if config.world_size is not None and size != config.world_size:
        raise UserError(
            f"dist.world_size ({config.world_size}): but {size} processes were started; start as "
            f"many as that, or set dist.world_size=null"
        )
    device = torch.device("cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "dist.device ('cuda'): torch sees no GPU here; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES, or set dist.device=auto"
        )
    if config.device != "cpu" and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--nproc_per_node ({local_size}): more processes than the "
                f"{torch.cuda.device_count()} visible GPUs; start one process a GPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        prepare_nccl(config, run_folder)
    if size > 1:
        check_master_address()
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    return World(rank, size, local_rank, local_size, device)


def check_master_address() -> None:
    """Raise UserError for a MASTER_ADDR that is no host's, for which torch waits in silence."""
    name = os.environ.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(name or None, 0)
    except OSError as error:
        raise UserError(
            f"environment (MASTER_ADDR={name!r}): no host of that name is found ({error}); give "
            f"torchrun the name or address of the first node (--rdzv-endpoint, --master-addr)"
        ) from None


def prepare_nccl(config: DistConfig, run_folder: Path | None) -> None:
    """Set what NCCL's process group reads from the environment, unless the user has set it.

    The names are those of torch 2.11; later ones (TORCH_FR_*) have these as second names.
    """
    entries = config.flight_recorder_entries
    variables = {
        # The watchdog's own watchdog: for when CUDA hangs, and no collective can time out.
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(math.ceil(max(60.0, config.timeout_s))),
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(entries),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": str(int(entries > 0 and run_folder is not None)),
    }
    if entries > 0 and run_folder is not None:
        folder = run_folder / FLIGHT_RECORDER_FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)  # torch does not make it
        except OSError as error:
            raise UserError(
                f"run.dir ({run_folder}): cannot be written to ({error.strerror}); give another "
                f"folder"
            ) from error
        variables["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] = str(folder.resolve() / "rank_")
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def stop_process_group(world: World) -> None:
    """Leave the process group. On failure paths exit instead, and the agent ends the peers."""
    if world.size > 1:
        dist.destroy_process_group()


def threads_per_rank(local_size: int) -> int:
    """CPU cores of this process's share of the node, at least 1.

    torchrun's --numa-binding gives each rank cores of its own, or those of its NUMA node; the share
    is one of the agent's, which has them all.
    """
    own = len(os.sched_getaffinity(0))
    whole = own
    if is_started_by_torchrun():
        with contextlib.suppress(OSError):  # the agent has gone
            whole = max(own, len(os.sched_getaffinity(os.getppid())))
    return max(1, min(own, whole // local_size))


def sync_attempt(world: World, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function on every rank; if it raises UserError on any, raise that on all.

    So that a rank that found bad input does not leave the others waiting in the next collective.
    """
    result: T | None = None
    message: str | None = None
    try:
        result = function(*args, **kwargs)
    except UserError as error:
        if world.size == 1:
            raise
        message = str(error)
    failed = [text for text in sync_gather_objects(message, world) if text is not None]
    if failed:
        raise AgreedError("\n".join(dict.fromkeys(failed)))
    return result  # type: ignore[return-value]


def sync_attempt_long(
    world: World, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """As `sync_attempt`, for work that may take longer than a collective waits (an index of 1.28
    million files on cold storage): ranks that are done wait for as long as the others are alive."""
    if world.size == 1:
        return function(*args, **kwargs)
    key = f"resnet_dist/long/{next(_long_attempts)}"

    def attempt() -> T:
        with _signs_of_life(f"{key}/{world.rank}"):
            return function(*args, **kwargs)

    def attempt_and_wait() -> T:
        try:
            return attempt()
        finally:
            _wait_for_all(key, world)

    return sync_attempt(world, attempt_and_wait)


_long_attempts = itertools.count()
"""Equal on all ranks, as the attempts are."""
_SIGN_S = 2.0
_SILENCE_S = 120.0
"""A rank that is silent for so long is left to the time-out of the next collective."""
_DONE = "done"


@contextlib.contextmanager
def _signs_of_life(key: str) -> Iterator[None]:
    """Count in the process group's store while this runs, then leave `_DONE` there."""
    store = dist.distributed_c10d._get_default_store()
    is_over = threading.Event()

    def count() -> None:
        for number in itertools.count():
            store.set(key, str(number))
            if is_over.wait(_SIGN_S):
                return

    thread = threading.Thread(target=count, name="signs_of_life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        store.set(key, _DONE)


def _wait_for_all(key: str, world: World) -> None:
    """Wait until every rank has left `_DONE` in the store, or one is silent for too long."""
    store = dist.distributed_c10d._get_default_store()
    for rank in range(world.size):
        last, since = "", time.monotonic()
        while last != _DONE and time.monotonic() - since < _SILENCE_S:
            name = f"{key}/{rank}"
            found = store.get(name).decode() if store.check([name]) else ""
            if found != last:
                last, since = found, time.monotonic()
            if last != _DONE:
                time.sleep(0.05)


def sync_barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier()


def sync_sum_(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def sync_gather_objects(value: T, world: World) -> list[T]:
    """Every rank's small picklable value, in the order of the ranks."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


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
    """Overwrite tensors with rank 0's, by one broadcast for each type."""
    if world.size == 1:
        return
    by_type: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.broadcast(flat, src=0)
        parts = torch.split(flat, [tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
