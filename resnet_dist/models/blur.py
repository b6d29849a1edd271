"""BlurPool: a blur before every stride (Zhang 2019, arXiv:1904.11486), as Composer and ffcv use it.

The blur is a 3x3 binomial filter over each channel. It has no parameters and no buffer: names and
state dict are those of the plain network, whose arithmetic differs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

LEAST_BLURRED = 16
"""Convolutions with fewer input channels than this are left as they are, in both sources."""


def blur(x: Tensor, stride: int = 1) -> Tensor:
    """`[N, C, H, W]` to `[N, C, H / stride, W / stride]`; what lies outside counts as 0."""
    channels = x.shape[1]
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    result: Tensor = conv2d(x, kernel, stride=stride, padding=1, groups=channels)
    return result


class BlurConv2d(nn.Conv2d):
    """A strided convolution of the blurred input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(blur(input))


class BlurMaxPool2d(nn.MaxPool2d):
    """The maximum at every position, blurred, of which every second is kept."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.stride, int)
        return blur(max_pool2d(input, self.kernel_size, 1, self.padding), self.stride)
