"""The order of the samples, replayed: each is used as often as it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from resnet_dist.config import Config
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.data.order import steps_per_epoch
from resnet_dist.data.replay import Counts, Start, replay_epoch, replay_evaluation
from resnet_dist.errors import UserError

_DEFAULT_RANKS = (8, 3, 5)


def choose_starts(
    config: Config, num_samples: int, given: Sequence[tuple[int, int]] | None
) -> list[Start]:
    """The starts given as (step, ranks), or some that restart on other numbers of ranks."""
    train = config.train
    steps = steps_per_epoch(num_samples, train.global_batch_size)
    if given is None:
        ranks = [min(count, train.global_batch_size) for count in _DEFAULT_RANKS]
        given = [(i * steps // 3, count) for i, count in enumerate(ranks) if i == 0 or steps >= 3]
    given = sorted(given)
    if given[0][0] != 0:
        raise UserError(
            f"--start ({given[0][0]}:{given[0][1]}): no start at step 0; add --start 0:N"
        )
    return [Start(step, choose_batch_split(train, ranks)) for step, ranks in given]


def check_order(config: Config, datasets: Datasets, starts: list[Start], epochs: int) -> int:
    """Replay and print. Returns 0 if every sample is used as it should be, else 1."""
    batch_size = config.train.global_batch_size
    num_train, num_val = len(datasets.train), len(datasets.val)
    ranks = ", ".join(f"{start.batch_split.world_size} from step {start.step}" for start in starts)
    print(f"order of seed {config.seed}, global batch {batch_size}, ranks: {ranks}")
    is_right = True
    ra_reps = config.augment.ra_reps
    num_used = num_train - num_train % batch_size
    for epoch in range(epochs):
        counts = replay_epoch(datasets.order, epoch, starts)
        never = num_train - math.ceil(num_used / ra_reps)
        is_right &= counts.num_used == num_used
        is_right &= counts.most == ra_reps and counts.never == never
        why = "the tail, dropped" if ra_reps == 1 else f"augment.ra_reps={ra_reps}"
        print(f"  training, epoch {epoch}: {_in_words(counts)} ({why})")
    for world_size in sorted({start.batch_split.world_size for start in starts}):
        counts = replay_evaluation(
            num_val, batch_size=config.eval.batch_size, world_size=world_size
        )
        is_right &= counts == Counts(never=0, once=num_val, more=0, num_used=num_val, most=1)
        print(f"  validation on {world_size} rank(s): {_in_words(counts)}")
    print("each sample is used as it should be" if is_right else "THIS IS WRONG: report it")
    return 0 if is_right else 1


def _in_words(counts: Counts) -> str:
    return f"{counts.once} samples once, {counts.more} more than once, {counts.never} not"
