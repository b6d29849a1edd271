"""All checks in their order, on every rank; rank 0 prints."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import torch

from resnet_dist.config import Config
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.doctor.disk import data_findings, disk_findings, probe_folder
from resnet_dist.doctor.finding import Finding, Verdict, conclusion, fail, table
from resnet_dist.doctor.gpus import gpu_findings
from resnet_dist.doctor.machine import machine_findings
from resnet_dist.doctor.ranks import sync_rank_findings
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder
from resnet_dist.system.ranks import launched_ranks
from resnet_dist.world import (
    World,
    start_process_group,
    stop_process_group,
    sync_broadcast_object,
    sync_gather_objects,
)

_TIMEOUT_S = 30.0
"""The longest wait for ranks that do not answer."""


def examine(config: Config) -> int:
    """Make all checks. Returns 0, or 1 if one failed on any rank."""
    world, found = _join(config)
    is_alone = world.size < launched_ranks().size
    if is_alone and world.local_rank != 0:
        return 0  # the first rank of this host speaks
    with contextlib.ExitStack() as stack:
        probe, unusable = _probe(stack, config, world)
        found += [*_local(config, world), *unusable]
        if world.is_main and not unusable:
            found += disk_findings(config, probe)
        shared = _sync_shared(world, probe)
        gathered = sync_gather_objects((socket.gethostname(), found), world)
    everything = [(host, each) for host, findings in gathered for each in findings]
    everything += [(socket.gethostname(), each) for each in shared]
    if world.is_main:
        print("\n".join([*table(everything), conclusion([each for _, each in everything])]))
    stop_process_group(world)
    return int(any(each.verdict is Verdict.FAIL for _, each in everything))


def _join(config: Config) -> tuple[World, list[Finding]]:
    """The process group; where there is none to be had, this host alone, and why."""
    ranks = launched_ranks()
    dist = replace(config.dist, timeout_s=min(config.dist.timeout_s, _TIMEOUT_S))
    found = []
    try:
        choose_batch_split(config.train, ranks.size)
    except UserError as error:
        found.append(fail("batch", str(error)))
    try:
        return start_process_group(dist), found
    except UserError as error:
        found.append(fail("process group", str(error)))
    except RuntimeError as error:
        remedy = "look at the network between the hosts"
        found.append(fail("process group", _first_line(error), remedy))
    is_gpu = torch.cuda.is_available() and config.dist.device != "cpu"
    device = torch.device("cuda", 0) if is_gpu else torch.device("cpu")
    return World(0, 1, ranks.local_rank, ranks.local_size, device), found


def _local(config: Config, world: World) -> list[Finding]:
    """Checks of a machine, by its first rank."""
    if world.local_rank != 0:
        return []
    return [*machine_findings(config, world), *gpu_findings(world), *data_findings(config)]


def _probe(stack: contextlib.ExitStack, config: Config, world: World) -> tuple[Path, list[Finding]]:
    """Rank 0's folder for trials, by its name on all ranks; or why there is none."""
    own: Path | None = None
    found: list[Finding] = []
    if world.is_main:
        folder = run_folder(config.run)
        try:
            own = stack.enter_context(probe_folder(folder))
        except OSError as error:
            what = f"{folder}: cannot be written to ({error.strerror})"
            found = [fail("run folder", what, "set run.dir")]
    named = sync_broadcast_object(None if own is None else str(own), world)
    return Path(named or "."), found


def _sync_shared(world: World, probe: Path) -> list[Finding]:
    try:
        return sync_rank_findings(world, probe)
    except RuntimeError as error:
        remedy = "look at the network, and at what the other ranks said"
        return [fail("ranks", _first_line(error), remedy)]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
