"""Progressive resizing: smaller training crops in the first epochs. Imports no torch."""

from __future__ import annotations

from resnet_dist.config import AugmentConfig


def train_size(augment: AugmentConfig, full_size: int, epoch: int) -> int:
    """Side of the training crops of an epoch, pixels, at most `full_size` (ffcv-imagenet's
    `get_resolution`)."""
    start, (first, last) = augment.progressive_start_size, augment.progressive_epochs
    if start is None or epoch >= last:
        return full_size
    if epoch <= first:
        return start
    side = start + (full_size - start) * (epoch - first) / (last - first)
    rounded = round(side / augment.progressive_multiple) * augment.progressive_multiple
    return min(max(rounded, start), full_size)
