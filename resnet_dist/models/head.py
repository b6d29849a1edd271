"""The layer of a network that makes its outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from resnet_dist.errors import UserError


@dataclass(frozen=True)
class Head:
    """The last layer, and its name."""

    name: str
    module: nn.Linear | nn.Conv2d

    @property
    def tensors(self) -> list[str]:
        """Names in the state dict."""
        return [f"{self.name}.{leaf}" for leaf, _ in self.module.named_parameters()]

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return self.module.weight.shape[0]


def find_head(model: nn.Module, num_classes: int | None = None) -> Head:
    """The last linear layer or convolution. Raises UserError if there is none, or if it has not
    `num_classes` outputs."""
    found = [
        Head(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    if num_classes is not None:
        found = [head for head in found if head.num_outputs == num_classes]
    if not found:
        raise UserError(
            f"model.name: the network has no last layer with {num_classes or 'any'} outputs; let "
            f"it have as many as it is asked for (num_classes)"
        )
    return found[-1]
