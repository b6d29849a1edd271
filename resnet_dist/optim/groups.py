"""Parameter groups: which parameters are decayed."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norm_and_bias: bool,
    head: nn.Module | None = None,
    head_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Two groups: the weights of convolutions and linear layers, then everything else.

    The number of dimensions decides (2 and more, or fewer), not the name: "bn" in the name misses
    the batch norms called `downsample.1`. The second group, the scales of batch norm and all
    biases, is decayed only with `decay_norm_and_bias` (Goyal et al. 2017, section 5.1, leaves it
    out). ResNet-50 has 54 and 107 tensors. Frozen parameters are in neither group.

    With a `head_lr_factor` other than 1 the last layer, `head`, has two groups of its own, whose
    learning rate is the schedule's times that factor (`lr_factor`).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if head is None or head_lr_factor == 1:
        return _by_dimensions(trained, weight_decay, decay_norm_and_bias)
    own = {id(parameter) for parameter in head.parameters()}
    body = [parameter for parameter in trained if id(parameter) not in own]
    groups = _by_dimensions(body, weight_decay, decay_norm_and_bias)
    last = [parameter for parameter in trained if id(parameter) in own]
    for group in _by_dimensions(last, weight_decay, decay_norm_and_bias):
        groups.append({**group, "lr_factor": head_lr_factor})
    return groups


def filters_apart(groups: list[dict[str, Any]], other_lr_factor: float) -> list[dict[str, Any]]:
    """For Muon: filters of convolutions (`is_matrix`) in groups of their own, the learning rate of
    the others times `other_lr_factor`."""
    result = []
    for group in groups:
        filters = [parameter for parameter in group["params"] if parameter.ndim == 4]
        others = [parameter for parameter in group["params"] if parameter.ndim != 4]
        if filters:
            result.append({**group, "params": filters, "is_matrix": True})
        if others:
            factor = other_lr_factor * group.get("lr_factor", 1.0)
            result.append({**group, "params": others, "lr_factor": factor})
    return result


def _by_dimensions(
    trained: list[nn.Parameter], weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
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
