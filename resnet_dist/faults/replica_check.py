"""Check that all ranks still hold the same weights, bit for bit, as data-parallel training assumes.

Every rank applies the same summed gradients to the same weights with the same operations, so any
difference is a fault: memory or arithmetic that went wrong silently, or a tensor that one rank did
not receive. It spreads by the gradients and never goes away by itself.

A tensor's hash is the sum of its bits taken as integers: any one flipped bit changes it. It is
computed where the tensor lies; 16 bytes per rank are sent while all agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from resnet_dist.errors import GuardError
from resnet_dist.faults.hosts import describe_ranks, sync_host_names
from resnet_dist.world import World, sync_gather_objects

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicaError(GuardError):
    """Ranks hold different weights."""


@dataclass(frozen=True)
class Finding:
    """Which ranks differ from the others, and in what."""

    odd_ranks: list[int]
    is_majority: bool
    """Whether more ranks agree with each other than there are in any other group."""
    tensor: str
    """The first that differs."""
    num_tensors: int
    """How many differ."""


@torch.no_grad()
def sync_check_replicas(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    *,
    step: int,
    with_buffers: bool,
) -> None:
    """Raise ReplicaError, the same on all ranks, if a tensor differs between ranks.

    All ranks must call it. Compares parameters and the optimizer's state, and with
    `with_buffers` the floating-point buffers, which are equal only with synchronised batch norm.
    Waits for the device.
    """
    if world.size == 1:
        return
    tensors = named_tensors(model, optimizer, with_buffers=with_buffers)
    hashes = hash_tensors(list(tensors.values()), world.device)
    # Odd factors: a change of one hash changes the sum of the products. The numbers may overflow.
    factors = torch.arange(len(hashes), dtype=torch.int64, device=world.device) * 2 + 1
    total = (hashes * factors).sum()
    extremes = torch.stack([total, ~total])  # ~x falls as x rises: one MAX is also a MIN
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    highest, inverted_lowest = extremes.tolist()
    if highest == ~inverted_lowest:
        return
    everyone = sync_gather_objects(dict(zip(tensors, hashes.tolist(), strict=True)), world)
    raise ReplicaError(_describe(find_odd(everyone), step, sync_host_names(world)))


def named_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, with_buffers: bool
) -> dict[str, torch.Tensor]:
    """What must be equal on all ranks, by name."""
    parameters = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = dict(parameters)
    if with_buffers:
        buffers = model.named_buffers()
        tensors |= {name: buffer for name, buffer in buffers if buffer.is_floating_point()}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{kind} of {name}"] = value
    return tensors


def hash_tensors(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """One int64 number per tensor, `[len(tensors)]` on `device`."""
    # Some optimizers keep their count of steps on the CPU.
    return torch.stack([_hash(tensor).to(device, non_blocking=True) for tensor in tensors])


def _hash(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def find_odd(everyone: Sequence[dict[str, int]]) -> Finding:
    """Compare the ranks' hashes by name: the largest group is right, or else rank 0's."""
    groups = Counter(tuple(hashes.items()) for hashes in everyone)
    largest = groups.most_common(2)
    is_majority = largest[0][1] > largest[1][1]
    reference = dict(largest[0][0]) if is_majority else everyone[0]
    odd = [rank for rank, hashes in enumerate(everyone) if hashes != reference]
    names = dict.fromkeys(name for rank in [0, *odd] for name in everyone[rank])
    differing = [
        name
        for name in names
        if any(everyone[rank].get(name) != reference.get(name) for rank in odd)
    ]
    return Finding(odd, is_majority, differing[0], len(differing))


def _describe(finding: Finding, step: int, hosts: tuple[str, ...]) -> str:
    ranks = describe_ranks(finding.odd_ranks, hosts)
    others = "the other ranks" if finding.is_majority else "rank 0 (which is right is not known)"
    return (
        f"replicas (step {step}): {ranks} against {others}: {finding.num_tensors} tensor(s) "
        f"differ, the first is {finding.tensor}; all ranks must hold the same bits, so this is "
        f"silent data corruption, a missed broadcast, or hosts that compute differently; nothing "
        f"of this step is saved: start again to resume from the newest checkpoint, and take the "
        f"host out if it is named again"
    )


@torch.no_grad()
def flip_a_bit(model: nn.Module) -> None:
    """Change the lowest bit of one number of the first parameter, as a faulty memory does."""
    first = next(model.parameters())
    bits = first.detach().view(_INTEGERS[first.element_size()])
    bits[(0,) * bits.dim()] ^= 1
