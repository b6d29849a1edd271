"""The host of each rank, so that messages say where to look."""

from __future__ import annotations

import socket

from resnet_dist.world import World, sync_gather_objects


def sync_host_names(world: World) -> tuple[str, ...]:
    """The host name of each rank, in their order. All ranks must call it."""
    return tuple(sync_gather_objects(socket.gethostname(), world))


def describe_ranks(ranks: list[int], hosts: tuple[str, ...]) -> str:
    """`rank 1 (host a)`, or `ranks 1 (host a) and 3 (host b)`."""
    words = [f"{rank} (host {hosts[rank]})" for rank in ranks]
    if len(words) == 1:
        return f"rank {words[0]}"
    return f"ranks {', '.join(words[:-1])} and {words[-1]}"
