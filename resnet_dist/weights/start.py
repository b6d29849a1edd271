"""What a new run's network starts from besides the seed: `model.weights`, filters by the data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from torch import Tensor, nn

from resnet_dist.config import ModelConfig
from resnet_dist.data.batch import Batch
from resnet_dist.models.whitening import find_whitening
from resnet_dist.optim.ema import ModelEma
from resnet_dist.weights.fit import start_from
from resnet_dist.weights.read import read_weights
from resnet_dist.world import (
    World,
    sync_attempt,
    sync_broadcast_,
    sync_broadcast_object,
    sync_sum_,
)


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


def sync_whiten(
    model: nn.Module,
    average: ModelEma | None,
    first_batches: Callable[[], Generator[Batch, None, None]],
    world: World,
) -> None:
    """Set the filters of a whitening layer, and of the moving average's, from this rank's batches
    of the first step. All ranks must call it; without such a layer it returns at once."""
    layer = find_whitening(model)
    if layer is None:
        return
    with closing(first_batches()) as batches:
        moments = sum(layer.second_moments(batch.images) for batch in batches)
    assert isinstance(moments, Tensor)
    layer.whiten(sync_sum_(moments, world))
    if average is not None:
        average.load_state_dict(model.state_dict())
