"""Start gloo ranks on this machine for a test, and bring back what each returned."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    folder: Path,
    *args: Any,
    timeout_s: float = 60.0,
) -> list[Any]:
    """`[function(rank, world_size, *args) for each rank]`, each in a process of its own.

    `function` lies at the top of a module. Ranks meet through a file in `folder`, so that no port
    can be taken; each has one thread and treats warnings as errors. A rank that raises ends the
    others, and the call with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        _rank,
        (function, world_size, folder, args, timeout_s),
        nprocs=world_size,
        start_method="forkserver",
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(
    rank: int,
    function: Callable[..., Any],
    world_size: int,
    folder: Path,
    args: tuple[Any, ...],
    timeout_s: float,
) -> None:
    warnings.simplefilter("error")
    # Interfaces are looked up by host name otherwise, which not every machine can resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / "store"), world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    result = function(rank, world_size, *args)
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()
