"""After many steps in a row without a finite gradient: say where it began, go back, or stop.

Goes back to the last good checkpoint once, for a cause that does not come again (a bad memory cell,
a flaky link); what is a function of data and weights comes again, and then the run ends with the
diagnosis.
"""

from __future__ import annotations

import socket
from typing import Any

from resnet_dist.checkpoint.manager import CheckpointManager, sync_load
from resnet_dist.config import Config
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import GuardError, UserError
from resnet_dist.faults.non_finite import SkipCounts
from resnet_dist.state import TrainState
from resnet_dist.world import World, sync_attempt, sync_gather_objects

_MOST_IDS = 16


def sync_diagnose(
    state: TrainState, config: Config, datasets: Datasets, batch_split: BatchSplit, world: World
) -> str:
    """Step, ranks, samples and loss scale where the last row of skipped steps began, in words.

    All ranks must call it.
    """
    counts = state.guard.read()
    found = sync_gather_objects((counts, socket.gethostname()), world)
    step = counts.first_step
    lines = [
        f"{counts.longest} steps in a row were skipped, from step {step + 1} "
        f"on: their loss or gradients were not finite"
    ]
    lines += [
        f"rank {rank} ({host}): its loss was not finite in step {own.own_loss_step + 1}, "
        f"{_samples(datasets, batch_split, rank, own)}"
        for rank, (own, host) in enumerate(found)
        if own.own_loss_step >= 0
    ]
    if len(lines) == 1:
        lines.append("the loss of every rank was finite: it is the backward pass that overflowed")
    lines.append(
        f"precision {config.train.precision}, loss scale {state.scaler.get_scale():g}, "
        f"last losses {', '.join(f'{loss:.4g}' for loss in state.losses.state_dict()[-5:])}"
    )
    return "\n".join(lines)


def _samples(datasets: Datasets, batch_split: BatchSplit, rank: int, counts: SkipCounts) -> str:
    ids = datasets.order.sample_ids(counts.own_loss_step)
    own = [
        sample_id
        for micro_batch in range(batch_split.accumulation_steps)
        for sample_id in ids[slice(*batch_split.micro_batch_slice(rank, micro_batch))].tolist()
    ]
    more = f" and {len(own) - _MOST_IDS} more" if len(own) > _MOST_IDS else ""
    return f"samples {', '.join(map(str, own[:_MOST_IDS]))}{more}"


def sync_go_back(
    state: TrainState, checkpoints: CheckpointManager, diagnosis: str, world: World
) -> str:
    """Restore the last checkpoint that is not in the middle of skipped steps; newer ones are set
    aside. All ranks must call it. Returns a line for the user.

    Raises GuardError with the diagnosis if there is none.
    """
    _sync_quarantine(checkpoints, world)
    try:
        loaded = sync_load(checkpoints, "required", world)
    except UserError as error:
        raise GuardError(f"{diagnosis}\nthere is no checkpoint to go back to") from error
    assert loaded is not None
    state.load_state_dict(loaded.payload, is_main=world.is_main)
    return f"{diagnosis}\ngoing back to {loaded.path} once, at step {state.step}"


def sync_give_up(checkpoints: CheckpointManager, diagnosis: str, world: World) -> GuardError:
    """The second time in one start. All ranks must call it. What is started again goes on from the
    last checkpoint that is not in the middle of skipped steps."""
    _sync_quarantine(checkpoints, world)
    return GuardError(
        f"{diagnosis}\nthis is the second time since the start, so it is not chance: lower "
        f"optim.lr or lengthen schedule.warmup_epochs, use train.precision=bfloat16, clip "
        f"(train.clip_grad_norm=1.0), or look at the samples named"
    )


def _sync_quarantine(checkpoints: CheckpointManager, world: World) -> None:
    def set_aside() -> None:
        if world.is_main:
            checkpoints.quarantine_until(_is_good, "diverged")

    sync_attempt(world, set_aside)


def _is_good(payload: dict[str, Any]) -> bool:
    in_a_row = int(payload["guard"]["counts"][1])
    return in_a_row == 0
