"""Check that these ranks can train together, made once before any data is read.

Owns three checks, each of which names the host to look at: a small sum over all ranks is right on
each of them, each has a device of its own, and all run the same versions. That there are as many
ranks as requested is checked earlier (`dist.world_size`).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed

from resnet_dist.errors import AgreedError
from resnet_dist.run.versions import DALI, package_versions
from resnet_dist.world import World, sync_gather_objects

_NUM_ELEMENTS = 1 << 18
"""Size of the tensor that is summed: 1 MiB, several packets and several of NCCL's chunks."""

_SAME_ON_ALL = ("torch", DALI, "numpy", "resnet_dist")


@dataclass(frozen=True)
class Facts:
    """What one rank reports about itself."""

    rank: int
    host: str
    device: str | None
    """Unique name of the GPU; None on CPU."""
    versions: dict[str, str]
    sum_is_right: bool


def sync_preflight(world: World) -> None:
    """Make the three checks. All ranks must call it.

    Raises AgreedError that names every rank and host that fails one.
    """
    problems = sync_problems(world)
    if problems:
        raise AgreedError("\n".join(f"preflight: {problem}" for problem in problems))


def sync_problems(world: World) -> list[str]:
    """What the checks find, the same on all ranks. All ranks must call it."""
    if world.size == 1:
        return []
    own = Facts(
        rank=world.rank,
        host=socket.gethostname(),
        device=_device_name(world.device),
        versions={name: package_versions()[name] for name in _SAME_ON_ALL},
        sum_is_right=_sync_sum_is_right(world),
    )
    return judge(sync_gather_objects(own, world))


def _device_name(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    return str(torch.cuda.get_device_properties(device).uuid)


def _sync_sum_is_right(world: World) -> bool:
    """Whether the sum over ranks of small integers, exact in float32, is what it must be."""
    ramp = torch.arange(_NUM_ELEMENTS, device=world.device) % 251
    total = (ramp + world.rank).float()
    torch.distributed.all_reduce(total)
    expected = ramp * world.size + world.size * (world.size - 1) // 2
    return bool((total == expected.float()).all())


def judge(facts: Sequence[Facts]) -> list[str]:
    """What is wrong with these ranks: one message per problem, naming rank and host."""
    problems = [
        f"rank {each.rank} on {each.host} got a wrong sum over all ranks; check its network and "
        f"memory, or leave that host out"
        for each in facts
        if not each.sum_is_right
    ]
    seen: dict[tuple[str, str], Facts] = {}
    for each in facts:
        if each.device is None:
            continue
        first = seen.setdefault((each.host, each.device), each)
        if first is not each:
            problems.append(
                f"ranks {first.rank} and {each.rank} on {each.host} share the GPU {each.device}; "
                f"give each rank its own (see CUDA_VISIBLE_DEVICES there)"
            )
    usual = facts[0]
    for each in facts:
        for name, version in each.versions.items():
            if version != usual.versions[name]:
                problems.append(
                    f"{name} is {version} on {each.host} (rank {each.rank}) and "
                    f"{usual.versions[name]} on {usual.host}; install the same on all hosts"
                )
    return list(dict.fromkeys(problems))
