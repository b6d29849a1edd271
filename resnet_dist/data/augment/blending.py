"""Random erasing, mixup and cutmix of normalised images, on the training device.

The numbers are torchvision's: `F.erase` with 0, `MixUp`, `CutMix`. What is done to which image is
in the spec (see `resnet_dist.data.augment.crop` and `resnet_dist.data.augment.mixing`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.batch import Mix, MixedLabels
from resnet_dist.data.read.buffers import HostBuffers, to_device


def erase_(images: Tensor, boxes: NDArray[np.int32]) -> None:
    """Set the box (top, left, height, width) of each image to 0: `[n, 3, S, S]`, `[n, 4]`."""
    if images.device.type != "cpu":
        erase_by_mask_(images, boxes)
        return
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0.0


def erase_by_mask_(images: Tensor, boxes: NDArray[np.int32]) -> None:
    """The same in one kernel for all images."""
    images.masked_fill_(_inside(boxes, images)[:, None], 0.0)


def mix(images: Tensor, recipe: Mix, buffers: HostBuffers) -> Tensor:
    """The micro-batch's own images, mixed with their partners.

    `images` `[n, 3, S, S]` float32 in channels-last memory format, of which rows `recipe.own` are
    returned in new memory of the same format: on the CPU, memory of `buffers`. Overwrites `images`.
    """
    rows = images.permute(0, 2, 3, 1)
    by = mix_by_mask(rows, recipe) if rows.is_cuda else _mix_on_host(rows, recipe, buffers)
    return by.permute(0, 3, 1, 2)


def mix_by_mask(rows: Tensor, recipe: Mix) -> Tensor:
    """A few kernels for all images: `[n, S, S, 3]` to the own ones' `[m, S, S, 3]`."""
    own, device = rows[recipe.own], rows.device
    others = rows[to_device(recipe.partners[recipe.own], device)]
    share = to_device(recipe.shares[recipe.own], device)[:, None, None, None]
    is_cut = to_device(recipe.is_cut[recipe.own], device)[:, None, None, None]
    pasted = torch.where(_inside(recipe.boxes[recipe.own], own)[..., None], others, own)
    return torch.where(is_cut, pasted, others * (1.0 - share) + own * share)


def _mix_on_host(rows: Tensor, recipe: Mix, buffers: HostBuffers) -> Tensor:
    own, partners = rows[recipe.own], recipe.partners[recipe.own]
    weights = np.where(recipe.is_cut, 1.0, recipe.shares)[recipe.own]
    weight = torch.from_numpy(weights.astype(np.float32))[:, None, None, None]
    result = buffers.take(own.numel()).view(own.shape)
    torch.index_select(rows, 0, torch.from_numpy(partners), out=result)
    result.mul_(1.0 - weight)
    # In place, for fresh memory is slow; images that are cut have weight 1 and stay as they are.
    result.add_(own.mul_(weight))
    for row, (top, left, height, width) in enumerate(recipe.boxes[recipe.own].tolist()):
        box = (slice(top, top + height), slice(left, left + width))
        result[row][box] = rows[int(partners[row])][box]
    return result


def mixed_labels(labels: NDArray[np.int64], recipe: Mix, device: torch.device) -> MixedLabels:
    """The second labels of the rows `recipe.own`; `labels` `[n]` are those of all rows."""
    return MixedLabels(
        partners=to_device(labels[recipe.partners[recipe.own]], device),
        shares=to_device(recipe.shares[recipe.own], device),
    )


def _inside(boxes: NDArray[np.int32], images: Tensor) -> Tensor:
    """`[n, S, S]` bool: whether a pixel lies in its image's box; `images` `[n, ..., S, any]`."""
    offsets = torch.arange(images.shape[2], device=images.device)
    top, left, height, width = to_device(boxes, images.device)[:, :, None].unbind(dim=1)
    rows = (offsets >= top) & (offsets < top + height)
    columns = (offsets >= left) & (offsets < left + width)
    return rows[:, :, None] & columns[:, None, :]
