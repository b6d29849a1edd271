"""Both splits, opened and described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from resnet_dist.config import Config
from resnet_dist.data import datasets
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.index.scan import left_out_note


def open_datasets(config: Config, *, shrinks_batch: bool) -> tuple[Config, Datasets]:
    """Both indexes, built where they are missing, and the config that fits them.

    shrinks_batch: take a smaller global batch if there are not enough images for one.
    """
    if shrinks_batch:
        index = open_index(config.data, config.data.train_split, build=True, show_progress=True)
        batch_size = min(config.train.global_batch_size, len(index))
        config = replace(config, train=replace(config.train, global_batch_size=batch_size))
    return config, datasets.open_datasets(config, build=True, show_progress=True)


def describe(both: Datasets) -> Iterator[str]:
    """Images, classes, sizes and fingerprint of each split."""
    for name, index in (("training", both.train), ("validation", both.val)):
        assert isinstance(index, Index)
        yield from _describe_split(name, index)
        yield from left_out_note(name, dict(index.left_out))


def _describe_split(name: str, index: Index) -> Iterator[str]:
    kind = f"{len(index.shards.names)} shard(s)" if index.shards is not None else "files"
    yield (
        f"{name}: {index.folder}: {len(index)} images of {len(index.own_classes)} classes in "
        f"{kind}, {int(index.lengths.sum()) / 1e9:.4g} GB, fingerprint {index.fingerprint[:12]}"
    )
    each = np.bincount(index.labels, minlength=len(index.classes))
    each = each[[index.classes.index(one) for one in index.own_classes]]
    shorter = np.minimum(index.heights, index.widths)
    longer = np.maximum(index.heights, index.widths)
    for what, values in (
        ("images per class", each),
        ("shorter side, pixels", shorter),
        ("longer side, pixels", longer),
        ("bytes per image", index.lengths),
    ):
        low, middle, high = int(values.min()), float(np.median(values)), int(values.max())
        yield f"  {what}: {low} to {high}, median {middle:g}"
