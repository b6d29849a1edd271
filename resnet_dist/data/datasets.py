"""The data of a run: both splits, opened on every rank, and all that follows from them.

The index is built, and the embedded data set made, by one rank of each node; the others wait, then
map the same files. What depends on the data set (its order, its number of classes) is decided here,
once, and not in every micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from resnet_dist.config import AugmentConfig, Config, DataConfig
from resnet_dist.data.blocked_order import blocks_of
from resnet_dist.data.index.index import Index, check_splits, open_index
from resnet_dist.data.index.places import cache_root
from resnet_dist.data.index.synthetic import SYNTHETIC_TRAIN, SYNTHETIC_VAL, SyntheticIndex
from resnet_dist.data.loaders.choice import choose_loader
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.quickstart.dataset import ensure_shapes
from resnet_dist.data.specs import TrainSpecs, digest_of_step, drop_rates
from resnet_dist.errors import UserError
from resnet_dist.system.failpoints import failpoint
from resnet_dist.world import World, sync_attempt, sync_attempt_long


@dataclass(frozen=True)
class Datasets:
    """What is trained on and evaluated on."""

    data: DataConfig
    """With `root` set to the embedded data set's folder where none was given."""
    augment: AugmentConfig
    train: Index | SyntheticIndex
    val: Index | SyntheticIndex
    order: SampleOrder
    """The samples of every training step."""
    num_classes: int
    """Outputs of the model: `model.num_classes`, or the number of the data's classes."""
    is_embedded: bool
    drop_rates: tuple[float, ...] = ()
    """Stochastic depth is drawn for each sample, like augmentation."""

    @property
    def train_specs(self) -> TrainSpecs:
        """What is done to the samples of a training step."""
        return TrainSpecs(
            self.data,
            self.augment,
            self.train,
            self.order.seed,
            self.order.global_batch_size,
            self.drop_rates,
        )

    def describe_next_batch(self, step: int) -> dict[str, Any]:
        """What a checkpoint of `step` says about the batch after it: the digest of its samples and
        augmentations, a pure function of (config, data, step) that is computed again at a
        resume."""
        digest = "synthetic"
        if isinstance(self.train, Index):
            digest = digest_of_step(self.train_specs, self.order, step)
        return {"next_batch": "damaged" if failpoint("checkpoint.digest") else digest}

    def samples_of(self, batch_split: BatchSplit, rank: int, step: int) -> list[int]:
        """Ids of the samples that a rank computes in a step."""
        ids = self.order.sample_ids(step)
        return [
            sample_id
            for micro_batch in range(batch_split.accumulation_steps)
            for sample_id in ids[slice(*batch_split.micro_batch_slice(rank, micro_batch))].tolist()
        ]


def sync_open_datasets(config: Config, world: World) -> Datasets:
    """Open (and first build, if need be) both indexes. All ranks must call it.

    Raises UserError, the same on all ranks.
    """
    if choose_loader(config.data, world.device) == "synthetic":
        return _resolve(config, config.data, SYNTHETIC_TRAIN, SYNTHETIC_VAL)

    def build() -> Datasets | None:
        if world.local_rank == 0:
            return open_datasets(config, build=True, show_progress=world.is_main)
        return None

    built = sync_attempt_long(world, build)
    return sync_attempt(
        world, lambda: built or open_datasets(config, build=False, show_progress=False)
    )


def sync_open_validation(
    config: Config, world: World, *, classes: list[str] | None
) -> tuple[DataConfig, Index | SyntheticIndex]:
    """The validation split alone, its labels numbered by `classes`, of which it may have some
    (None: by its own). All ranks must call it. Returns the data's settings as well, with `root`
    where none was given.

    Raises UserError, the same on all ranks, also for a class that `classes` lacks.
    """
    if choose_loader(config.data, world.device) == "synthetic":
        return config.data, SYNTHETIC_VAL

    def open_it(build: bool) -> tuple[DataConfig, Index]:
        shows = build and world.is_main
        data = _with_root(config.data, show_progress=shows)
        split = data.val_split
        index = open_index(data, split, classes=classes, build=build, show_progress=shows)
        return data, index

    built = sync_attempt_long(world, lambda: open_it(True) if world.local_rank == 0 else None)
    return sync_attempt(world, lambda: built or open_it(False))


def _with_root(data: DataConfig, *, show_progress: bool) -> DataConfig:
    """With the embedded data set, which is made if need be, where no data is named."""
    if data.root is not None:
        return data
    root = ensure_shapes(cache_root(data), show_progress=show_progress)
    return replace(data, root=str(root), train_split="train", val_split="val")


def open_datasets(config: Config, *, build: bool, show_progress: bool) -> Datasets:
    """Open both indexes in this process alone; `build`: make what is missing or out of date."""
    data = _with_root(config.data, show_progress=show_progress)
    train = open_index(data, data.train_split, build=build, show_progress=show_progress)
    val = open_index(
        data, data.val_split, classes=train.classes, build=build, show_progress=show_progress
    )
    check_splits(train, val)
    return _resolve(config, data, train, val)


def _resolve(
    config: Config,
    data: DataConfig,
    train: Index | SyntheticIndex,
    val: Index | SyntheticIndex,
) -> Datasets:
    num_classes = config.model.num_classes or len(train.classes)
    if num_classes < len(train.classes):
        raise UserError(
            f"model.num_classes ({num_classes}): the data has {len(train.classes)} classes; leave "
            f"it out to use that number"
        )
    order = SampleOrder(
        len(train),
        config.train.global_batch_size,
        seed=config.seed,
        ra_reps=config.augment.ra_reps,
        blocks=blocks_of(data, train) if isinstance(train, Index) else None,
    )
    is_embedded = isinstance(train, Index) and config.data.root is None
    return Datasets(
        data,
        config.augment,
        train,
        val,
        order,
        num_classes,
        is_embedded,
        drop_rates(config.model),
    )
