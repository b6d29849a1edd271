"""ResNet-18 to ResNet-152 (He et al. 2015, arXiv:1512.03385) and their usual variants.

Promises torchvision's module and parameter names, and its arithmetic for the standard stem with
`stride=v1.5`: a state dict goes both ways unchanged and the logits are equal. ResNet-D (He et al.
2018, arXiv:1812.01187, figure 2) takes the names of timm's resnet18d ... resnet152d, since
torchvision has none. The seed is set by the caller, `resnet_dist.models.build`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from resnet_dist.config import ModelConfig
from resnet_dist.models.blur import LEAST_BLURRED, BlurConv2d, BlurMaxPool2d
from resnet_dist.models.init import initialise
from resnet_dist.models.statistics import run_twice


class FirstConvolution(nn.Conv2d):
    """The convolution of the images.

    With `space_to_depth` a stride of 2 becomes a stride of 1: each 2 x 2 block of pixels becomes
    one pixel of 16 channels (4 for each pixel, the last of zeros), and the weights are regrouped
    alike. Same sums in another order, in a shape that suits matrix units better than 3 channels do.
    Parameters and state dict stay as they are. Images with an odd side are convolved as they come.
    """

    space_to_depth = False

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, out_channels, H / stride, W / stride]`. Raises ValueError for
        images with other channels."""
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"images with {images.shape[1]} channels; {self.in_channels} are taken"
            )
        has_blocks = images.shape[2] % 2 == images.shape[3] % 2 == 0
        if self.space_to_depth and self.stride == (2, 2) and has_blocks:
            return self._on_blocks(images)
        result: Tensor = self._conv_forward(images, self.weight, self.bias)
        return result

    def _on_blocks(self, images: Tensor) -> Tensor:
        """The same convolution over blocks of pixels.

        Output row o takes the 2 p + 1 input rows from 2 o - p on; p is the padding, an odd number.
        With a row of zero weights in front these are p + 1 whole blocks, from o - (p + 1) / 2 on.
        """
        n, channels, height, width = images.shape
        padded = max(4, channels)  # cuDNN would pad 4 x 3 channels to 16 by a copy of its own
        blocks = int(self.padding[0]) + 1
        before = blocks // 2
        dtype = images.dtype
        if torch.is_autocast_enabled(images.device.type):
            dtype = torch.get_autocast_dtype(images.device.type)
        shape = (n, height // 2 + blocks - 1, width // 2 + blocks - 1, 4 * padded)
        x = images.new_zeros(shape, dtype=dtype)
        inner = x[:, before : before + height // 2, before : before + width // 2]
        rows = images.permute(0, 2, 3, 1).reshape(n, height // 2, 2, width // 2, 2, channels)
        pixels = inner.view(*inner.shape[:3], 2, 2, padded)[..., :channels]
        pixels.copy_(rows.permute(0, 1, 3, 2, 4, 5))
        weight = pad(self.weight, (1, 0, 1, 0, 0, padded - channels))
        kernel = weight.reshape(-1, padded, blocks, 2, blocks, 2)
        kernel = kernel.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return torch.conv2d(x.permute(0, 3, 1, 2), kernel, self.bias)


def _first_convolution(
    out_channels: int, kernel: int, stride: int, config: ModelConfig
) -> nn.Conv2d:
    return FirstConvolution(
        config.in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=config.conv_bias,
    )


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, config: ModelConfig
) -> nn.Conv2d:
    """A padded convolution, without bias unless asked: batch norm follows, and subtracts it."""
    blurs = config.blur_pool != "none" and stride > 1 and in_channels >= LEAST_BLURRED
    return (BlurConv2d if blurs else nn.Conv2d)(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=config.conv_bias,
    )


def _norm(channels: int, config: ModelConfig) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


def _shortcut(
    in_channels: int, out_channels: int, stride: int, *, config: ModelConfig
) -> nn.Sequential | None:
    """The projection of a block's input; None where the input can be added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    norms = [_norm(out_channels, config)] if config.shortcut_norm else []
    if config.stem != "d":
        return nn.Sequential(
            _convolution(in_channels, out_channels, 1, stride, config=config), *norms
        )
    # ResNet-D: a strided 1x1 would ignore three quarters of its input, so average it first. Odd
    # sizes round up, as the strided convolution on the other branch does.
    pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(
        pool if stride == 2 else nn.Identity(),
        _convolution(in_channels, out_channels, 1, config=config),
        *norms,
    )


def _keep(branch: Tensor, kept: Tensor | None) -> Tensor:
    """Stochastic depth: `branch` `[N, C, H, W]` times `kept` `[N]`; as it is for None."""
    return branch if kept is None else branch * kept.to(branch.dtype)[:, None, None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, `[N, C, H, W]` to `[N, channels, H / stride, W / stride]`.

    `kept` `[N]` scales the residual branch of each image: see `Batch.kept`. The stride is in the
    first: v1 and v1.5 are the same network.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, channels, 3, stride, config=config)
        self.bn1 = _norm(channels, config)
        self.conv2 = _convolution(channels, channels, 3, config=config)
        self.bn2 = _norm(channels, config)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride, config=config)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = _keep(out, kept)
        out += identity
        activated: Tensor = self.relu(out)
        return activated

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends the residual branch."""
        return self.bn2


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, `[N, C, H, W]` to `[N, 4 channels, H / stride, W / stride]`.

    `kept` `[N]` scales the residual branch of each image: see `Batch.kept`. v1 (the
    paper) strides in the first 1x1 and drops three quarters of its input there; v1.5 (Facebook's
    and torchvision's) strides in the 3x3.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, config: ModelConfig
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        first, second = (stride, 1) if config.stride == "v1" else (1, stride)
        self.conv1 = _convolution(in_channels, channels, 1, first, config=config)
        self.bn1 = _norm(channels, config)
        self.conv2 = _convolution(channels, channels, 3, second, config=config)
        self.bn2 = _norm(channels, config)
        self.conv3 = _convolution(channels, out_channels, 1, config=config)
        self.bn3 = _norm(out_channels, config)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride, config=config)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = _keep(out, kept)
        out += identity
        activated: Tensor = self.relu(out)
        return activated

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends the residual branch."""
        return self.bn3


Block = type[BasicBlock] | type[Bottleneck]


def _stem(config: ModelConfig) -> nn.Module:
    """The first convolution(s), `[N, C, H, W]` to `[N, width, H / 2, W / 2]` (cifar: H, W)."""
    if config.stem == "cifar":
        return _first_convolution(config.width, 3, 1, config)
    if config.stem == "standard":
        return _first_convolution(config.width, 7, 2, config)
    half = config.width // 2
    return nn.Sequential(
        _first_convolution(half, 3, 2, config),
        _norm(half, config),
        nn.ReLU(inplace=True),
        _convolution(half, half, 3, config=config),
        _norm(half, config),
        nn.ReLU(inplace=True),
        _convolution(half, config.width, 3, config=config),
    )


def _stage(
    block: Block, in_channels: int, channels: int, *, depth: int, stride: int, config: ModelConfig
) -> nn.Sequential:
    """Blocks of one resolution; the first one strides."""
    out_channels = channels * block.expansion
    blocks: list[nn.Module] = [block(in_channels, channels, stride=stride, config=config)]
    blocks += [block(out_channels, channels, stride=1, config=config) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _max_pool(config: ModelConfig) -> nn.Module:
    """Behind the first convolution, `[N, C, H, W]` to `[N, C, H / 2, W / 2]` (cifar: as it is)."""
    if config.stem == "cifar":
        return nn.Identity()
    if config.blur_pool == "conv_maxpool":
        return BlurMaxPool2d(3, stride=2, padding=1)
    return nn.MaxPool2d(3, stride=2, padding=1)


class ResNet(nn.Module):
    """Images `[N, in_channels, H, W]` to logits `[N, num_classes]`, for any H and W of at least 1.

    `kept`, `[N, blocks]`: stochastic depth, see `Batch.kept`.
    """

    recomputes = False
    """Whether the backward pass computes the inside of each block a second time (less memory)."""

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        *,
        config: ModelConfig,
        num_classes: int,
    ) -> None:
        super().__init__()
        width, out = config.width, config.width * block.expansion
        self.conv1 = _stem(config)
        self.bn1 = _norm(width, config)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _max_pool(config)
        stage = partial(_stage, block, config=config)
        self.layer1 = stage(width, width, depth=depths[0], stride=1)
        self.layer2 = stage(out, 2 * width, depth=depths[1], stride=2)
        self.layer3 = stage(2 * out, 4 * width, depth=depths[2], stride=2)
        self.layer4 = stage(4 * out, 8 * width, depth=depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * out, num_classes)
        self._initialise(config)

    def _initialise(self, config: ModelConfig) -> None:
        """torchvision's by default: He et al. 2015 (arXiv:1502.01852), fan_out; the layer's own for
        `fc`."""
        initialise(self, config)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck) and config.zero_init_last_gamma:
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        recomputes = self.recomputes and self.training and torch.is_grad_enabled()
        if kept is None and not recomputes:
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        else:
            blocks = [*self.layer1, *self.layer2, *self.layer3, *self.layer4]
            for number, block in enumerate(blocks):
                of_block = None if kept is None else kept[:, number]
                x = run_twice(block, x, of_block) if recomputes else block(x, of_block)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits
