"""Who computes which samples of a step: pure integer arithmetic.

Owns the split of a global batch into micro-batches and of those among ranks. Promises that every
sample of the global batch is computed by exactly one rank in exactly one micro-batch, and that the
sizes of two ranks differ by at most one a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.config import TrainConfig
from resnet_dist.errors import UserError


def split(total: int, parts: int, part: int) -> tuple[int, int]:
    """Bounds `[low, high)` of one of `parts` nearly equal slices of range(total)."""
    return total * part // parts, total * (part + 1) // parts


@dataclass(frozen=True)
class BatchSplit:
    """The split of every global batch for one world size."""

    global_batch_size: int
    world_size: int
    accumulation_steps: int

    def micro_batch_slice(self, rank: int, micro_batch: int) -> tuple[int, int]:
        """Positions `[low, high)` in the global batch that `rank` computes in micro-batch
        `micro_batch`.

        With one micro-batch this is `[B*r//W, B*(r+1)//W)`. With several, the global batch is cut
        into micro-batches first, so that the samples that share batch statistics depend on the
        number of micro-batches but not on the number of ranks.
        """
        low, high = split(self.global_batch_size, self.accumulation_steps, micro_batch)
        first, last = split(high - low, self.world_size, rank)
        return low + first, low + last

    def local_batch_size(self, rank: int) -> int:
        """Samples of one step that `rank` computes."""
        slices = [
            self.micro_batch_slice(rank, micro_batch)
            for micro_batch in range(self.accumulation_steps)
        ]
        return sum(high - low for low, high in slices)

    @property
    def largest_micro_batch(self) -> int:
        """Most samples in one forward pass of any rank."""
        whole = -(-self.global_batch_size // self.accumulation_steps)
        return -(-whole // self.world_size)

    @property
    def smallest_micro_batch(self) -> int:
        """Fewest samples in one forward pass of any rank."""
        return self.global_batch_size // self.accumulation_steps // self.world_size


def choose_batch_split(train: TrainConfig, world_size: int) -> BatchSplit:
    """Choose the number of micro-batches, the fewest that the limit allows unless it is pinned.

    Raises UserError where a rank would get nothing to compute or too much to hold.
    """
    batch_size, limit = train.global_batch_size, train.max_micro_batch_size
    if world_size > batch_size:
        raise UserError(
            f"train.global_batch_size ({batch_size}): is smaller than the {world_size} "
            f"ranks that were started; raise it or start at most {batch_size} processes"
        )
    steps = train.accumulation_steps or 1
    if train.accumulation_steps is None and limit is not None:
        while BatchSplit(batch_size, world_size, steps).largest_micro_batch > limit:
            steps += 1
    split = BatchSplit(batch_size, world_size, steps)
    if limit is not None and split.largest_micro_batch > limit:
        raise UserError(
            f"train.accumulation_steps ({steps}): gives micro-batches of "
            f"{split.largest_micro_batch} samples on {world_size} ranks, above "
            f"train.max_micro_batch_size ({limit}); raise one of the two"
        )
    if split.smallest_micro_batch < 1:
        raise UserError(
            f"train.global_batch_size ({batch_size}): {steps} micro-batches on {world_size} "
            f"ranks leave a rank without a sample; raise train.max_micro_batch_size "
            f"or lower train.accumulation_steps"
        )
    return split
