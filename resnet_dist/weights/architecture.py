"""Which network a state dict belongs to, from the names and shapes of its tensors.

The stride of a bottleneck (v1 or v1.5) leaves no trace in them: v1.5 is taken, as in torchvision
and timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from resnet_dist.config.model import DEPTHS
from resnet_dist.models.build import block_of
from resnet_dist.models.resnet import Bottleneck

_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")


def guess_model(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Settings of the section `model` that make this network, by dotted path; None if it is none of
    ours."""
    if "res1.0.0.weight" in tensors:
        return _resnet9(tensors)
    depths = [0, 0, 0, 0]
    for name in tensors:
        found = _BLOCK.match(name)
        if found is not None:
            stage = int(found[1]) - 1
            depths[stage] = max(depths[stage], int(found[2]) + 1)
    is_bottleneck = "layer1.0.conv3.weight" in tensors
    names = [
        name
        for name, known in DEPTHS.items()
        if known == tuple(depths) and (block_of(name) is Bottleneck) == is_bottleneck
    ]
    first = tensors.get("conv1.weight", tensors.get("conv1.0.weight"))
    if not names or first is None or "bn1.weight" not in tensors:
        return None
    stem = "d" if "conv1.0.weight" in tensors else "cifar" if first.shape[2] == 3 else "standard"
    return {
        "model.name": names[0],
        "model.width": tensors["bn1.weight"].shape[0],
        "model.stem": stem,
        "model.in_channels": first.shape[1],
        "model.conv_bias": "layer1.0.conv1.bias" in tensors,
        "model.shortcut_norm": any(
            name.endswith(("downsample.1.weight", "downsample.2.weight")) for name in tensors
        )
        or not any(".downsample." in name for name in tensors),
    }


def _resnet9(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first = tensors["conv1.0.weight"]
    return {
        "model.name": "resnet9",
        "model.width": tensors["conv2.0.weight"].shape[0] // 2,
        "model.stem": "standard" if "conv1.1.weight" in tensors else "whiten",
        "model.in_channels": first.shape[1],
        "model.conv_bias": "conv2.0.bias" in tensors,
    }


def num_outputs(tensors: Mapping[str, Tensor]) -> int | None:
    """Outputs of the last matrix in the state dict: that of the classifier."""
    shapes = [value.shape for value in tensors.values() if value.ndim == 2]
    return shapes[-1][0] if shapes else None
