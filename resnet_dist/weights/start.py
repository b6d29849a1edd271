"""A new run that starts from weights: `model.weights`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from resnet_dist.config import ModelConfig
from resnet_dist.optim.ema import ModelEma
from resnet_dist.weights.fit import start_from
from resnet_dist.weights.read import read_weights
from resnet_dist.world import World, sync_attempt, sync_broadcast_, sync_broadcast_object


def sync_start_from_weights(
    model: nn.Module,
    average: ModelEma | None,
    config: ModelConfig,
    *,
    classes: Sequence[str],
    world: World,
) -> list[str]:
    """Load `model.weights` into a network at step 0, and into its moving average. Returns notes.

    Rank 0 reads the file; the others get its tensors. All ranks must call it. Raises UserError, the
    same on all ranks.
    """
    if config.weights is None:
        return []
    source = config.weights

    def load() -> list[str]:
        if not world.is_main:
            return []
        weights = read_weights(source, model_name=config.name)
        tensors = weights.choose(average=config.weights_average)
        notes = start_from(model, weights, tensors, classes)
        return [*notes, *(f"note: {note}" for note in weights.notes)]

    notes = sync_attempt(world, load)
    sync_broadcast_(list(model.state_dict().values()), world)
    if average is not None:
        average.load_state_dict(model.state_dict())
    found: list[str] = sync_broadcast_object(notes, world)
    return found
