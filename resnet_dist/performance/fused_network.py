"""The training pass of a network with fused batch norm: the same mathematics in fewer passes.

Promises the values, gradients and running statistics of the plain network's forward pass, up to
rounding: in 16 bits it rounds less often, since what batch norm, the addition and ReLU hand to one
another never goes to memory. The plain network stays the one to evaluate, average and save.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from resnet_dist.errors import UserError
from resnet_dist.models.resnet import BasicBlock, Bottleneck, ResNet
from resnet_dist.models.resnet9 import ResNet9
from resnet_dist.models.whitening import WhiteningConvolution
from resnet_dist.performance.cast import WeightCast
from resnet_dist.performance.fused_norm import norm_relu, norm_relu_convolution, norm_relu_pool

CHANNELS = 8
"""Channels must be a multiple of it: signs of the ReLU are packed into bytes."""


class FusedNetwork(nn.Module):
    """Calls `model` in training with fused batch norm: `[N, 3, H, W]` to `[N, num_classes]`.

    `group`: batch statistics over its ranks; None: over each batch. In evaluation it is `model`.
    Raises UserError for networks that it does not know or whose channels do not fit.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        if not isinstance(model, ResNet | ResNet9):
            raise UserError(
                f"performance.fused_norm (true): {type(model).__name__} has no fused form; "
                "leave it out"
            )
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        odd = [norm.num_features for norm in norms if norm.num_features % CHANNELS]
        if odd:
            raise UserError(
                f"performance.fused_norm (true): needs channels that are multiples of {CHANNELS}, "
                f"but model.width gives layers with {odd[0]}; choose another width, or leave it out"
            )
        self.model = model
        self.before_first_norm = nn.Identity()
        """Called in training just before the first batch norm: a place for hooks."""
        self._group = group
        self._cast = WeightCast(model, prefix="model.")
        self._counters = [
            norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None
        ]

    @property
    def is_synchronised(self) -> bool:
        """Whether batch norm communicates."""
        return self._group is not None

    def forward(self, images: Tensor, is_cast: bool = False) -> Tensor:
        """`is_cast`: autocast has nothing left to do with the weights."""
        if not self.model.training:
            evaluated: Tensor = self.model(images)
            return evaluated
        kind = images.device.type
        if torch.is_autocast_enabled(kind) and not is_cast:
            weights = self._cast(self, torch.get_autocast_dtype(kind))
            called: Tensor = functional_call(self, weights, (images, True))
            return called
        torch._foreach_add_(self._counters, 1)
        model, group = self.model, self._group
        if isinstance(model, ResNet9):
            whitens = isinstance(model.conv1[0], WhiteningConvolution)
            first = model.conv2[0](model.conv1(images)) if whitens else model.conv1[0](images)
            return _resnet9(model, self.before_first_norm(first), group, whitens=whitens)
        assert isinstance(model, ResNet)
        first = model.conv1[0] if isinstance(model.conv1, nn.Sequential) else model.conv1
        return _resnet(model, self.before_first_norm(first(images)), group)


def _resnet(model: ResNet, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """From the result of the very first convolution to the logits.

    A block's last batch norm is done together with the next block's first convolution.
    """
    x = _rest_of_stem(model, x, group)
    pools = isinstance(model.maxpool, nn.MaxPool2d)
    x = norm_relu_pool(model.bn1, x, group=group) if pools else norm_relu(model.bn1, x, group=group)
    pending: tuple[nn.BatchNorm2d, Tensor, Tensor] | None = None
    for block in _blocks(model):
        if pending is None:
            z = block.conv1(x)
        else:
            norm, z, identity = pending
            z, x = norm_relu_convolution(norm, block.conv1, z, identity, group=group)
        identity = x if block.downsample is None else _project(block.downsample, x, group)
        z, _ = norm_relu_convolution(block.bn1, block.conv2, z, group=group)
        if isinstance(block, Bottleneck):
            z, _ = norm_relu_convolution(block.bn2, block.conv3, z, group=group)
        pending = (block.last_norm, z, identity)
    assert pending is not None
    norm, z, identity = pending
    x = norm_relu(norm, z, identity, group=group)
    logits: Tensor = model.fc(torch.flatten(model.avgpool(x), 1))
    return logits


def _blocks(model: ResNet) -> Iterator[BasicBlock | Bottleneck]:
    for block in chain(model.layer1, model.layer2, model.layer3, model.layer4):
        assert isinstance(block, BasicBlock | Bottleneck)
        yield block


def _rest_of_stem(model: ResNet, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What goes into `bn1`: x itself, or in ResNet-D two convolutions later."""
    if not isinstance(model.conv1, nn.Sequential):
        return x
    _, norm1, _, conv2, norm2, _, conv3 = model.conv1
    for norm, convolution in ((norm1, conv2), (norm2, conv3)):
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(convolution, nn.Conv2d)
        x, _ = norm_relu_convolution(norm, convolution, x, group=group)
    return x


def _project(shortcut: nn.Sequential, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The shortcut of a block whose input and output differ in shape."""
    *layers, norm = shortcut
    assert isinstance(norm, nn.BatchNorm2d)
    for layer in layers:
        x = layer(x)
    return norm_relu(norm, x, relu=False, group=group)


def _resnet9(
    model: ResNet9, x: Tensor, group: dist.ProcessGroup | None, *, whitens: bool
) -> Tensor:
    """From what goes into the very first batch norm to the logits."""

    def norm_and_pool(layers: nn.Sequential, x: Tensor) -> Tensor:
        _, norm, _, *pool = layers
        assert isinstance(norm, nn.BatchNorm2d)
        x = norm_relu(norm, x, group=group)
        pooled: Tensor = pool[0](x) if pool else x
        return pooled

    def unit(layers: nn.Sequential, x: Tensor) -> Tensor:
        return norm_and_pool(layers, layers[0](x))

    def residual(layers: nn.Sequential, x: Tensor) -> Tensor:
        y = x
        for layer in layers:
            assert isinstance(layer, nn.Sequential)
            y = unit(layer, y)
        return y + x

    first = model.conv2 if whitens else model.conv1
    x = norm_and_pool(first, x)
    x = x if whitens else unit(model.conv2, x)
    x = residual(model.res1, x)
    x = unit(model.conv4, unit(model.conv3, x))
    return model.classify(residual(model.res2, x))
