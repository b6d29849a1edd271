"""Reaction to many steps in a row without a finite gradient: back to the last good checkpoint, or
stop.

Goes back once, for a cause that does not recur (a bad memory cell, a flaky link). What is a
function of data and weights recurs, and then the run ends with the diagnosis.
"""

from __future__ import annotations

from typing import Any

from resnet_dist.checkpoint.choice import sync_load
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.checkpoint.restore import Stateful
from resnet_dist.errors import GuardError, UserError
from resnet_dist.world import World, sync_attempt


def sync_go_back(
    state: Stateful, checkpoints: CheckpointManager, diagnosis: str, world: World
) -> str:
    """Restore the last checkpoint that is not in the middle of skipped steps; newer ones are
    quarantined. All ranks must call it. Returns a line for the user.

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
    """The error that ends the run the second time. All ranks must call it.

    A restart resumes from the last checkpoint that is not in the middle of skipped steps.
    """
    _sync_quarantine(checkpoints, world)
    return GuardError(
        f"{diagnosis}\nthis is the second time since the start, so it is not chance: lower "
        f"optim.lr or lengthen schedule.warmup_epochs, use train.precision=bfloat16, clip "
        f"(train.clip_grad_norm=1.0), or look at the samples named"
    )


def _sync_quarantine(checkpoints: CheckpointManager, world: World) -> None:
    def quarantine() -> None:
        if world.is_main:
            checkpoints.quarantine_until(_is_good, "diverged")

    sync_attempt(world, quarantine)


def _is_good(payload: dict[str, Any]) -> bool:
    in_a_row = int(payload["guard"]["counts"][1])
    return in_a_row == 0
