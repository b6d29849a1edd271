"""The data of a run: the indexes of its two splits, opened on every rank.

The index is built, and the embedded data set made, by one rank of each node; the others wait, then
map the same files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from resnet_dist.config import Config, DataConfig
from resnet_dist.data.loaders.build import (
    SYNTHETIC_TRAIN,
    SYNTHETIC_VAL,
    Index,
    SyntheticIndex,
    cache_root,
    check_splits,
    choose_loader,
    open_index,
)
from resnet_dist.data.quickstart.dataset import ensure_shapes
from resnet_dist.errors import UserError
from resnet_dist.world import World, sync_attempt


@dataclass(frozen=True)
class Datasets:
    """What is trained on and evaluated on."""

    data: DataConfig
    """With `root` set to the embedded data set's folder where none was given."""
    train: Index | SyntheticIndex
    val: Index | SyntheticIndex
    num_classes: int
    """Outputs of the model: `model.num_classes`, or the number of the data's classes."""
    is_embedded: bool


def sync_open_datasets(config: Config, world: World) -> Datasets:
    """Open (and first build, if need be) both indexes. All ranks must call it.

    Raises UserError, the same on all ranks.
    """
    if choose_loader(config.data, world.device) == "synthetic":
        indexes = SYNTHETIC_TRAIN, SYNTHETIC_VAL
        return _checked(config, config.data, indexes, is_embedded=False)

    def build() -> Datasets | None:
        if world.local_rank == 0:
            return open_datasets(config, build=True, show_progress=world.is_main)
        return None

    built = sync_attempt(world, build)
    return sync_attempt(
        world, lambda: built or open_datasets(config, build=False, show_progress=False)
    )


def open_datasets(config: Config, *, build: bool, show_progress: bool) -> Datasets:
    """Open both indexes in this process alone; `build`: make what is missing or out of date."""
    data, is_embedded = config.data, config.data.root is None
    if is_embedded:
        root = ensure_shapes(cache_root(data), show_progress=show_progress)
        data = replace(data, root=str(root), train_split="train", val_split="val")
    train = open_index(data, data.train_split, build=build, show_progress=show_progress)
    val = open_index(
        data, data.val_split, classes=train.classes, build=build, show_progress=show_progress
    )
    check_splits(train, val)
    return _checked(config, data, (train, val), is_embedded=is_embedded)


def _checked(
    config: Config,
    data: DataConfig,
    indexes: tuple[Index | SyntheticIndex, Index | SyntheticIndex],
    *,
    is_embedded: bool,
) -> Datasets:
    train, val = indexes
    num_classes = config.model.num_classes or len(train.classes)
    if num_classes < len(train.classes):
        raise UserError(
            f"model.num_classes ({num_classes}): the data has {len(train.classes)} classes; leave "
            f"it out to use that number"
        )
    batch = config.train.global_batch_size
    if len(train) < batch:
        raise UserError(
            f"train.global_batch_size ({batch}): exceeds the {len(train)} training samples; lower "
            f"it to at most {len(train)}"
        )
    return Datasets(data, train, val, num_classes, is_embedded)
