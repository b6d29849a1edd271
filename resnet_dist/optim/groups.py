"""Parameter groups: which parameters are decayed."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Two groups: the weights of convolutions and linear layers, then everything else.

    The number of dimensions decides (2 and more, or fewer), not the name: "bn" in the name misses
    the batch norms called `downsample.1`. The second group, the scales of batch norm and all
    biases, is decayed only with `decay_norm_and_bias` (Goyal et al. 2017, section 5.1, leaves it
    out). ResNet-50 has 54 and 107 tensors. Frozen parameters are in neither group.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in trained if parameter.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {
            "params": [parameter for parameter in trained if parameter.ndim < 2],
            "weight_decay": weight_decay if decay_norm_and_bias else 0.0,
        },
    ]
