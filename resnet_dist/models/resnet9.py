"""ResNet-9 for 32x32 images, as commonly taught for CIFAR-10 (after David Page's DAWNBench entry).

conv 64, conv 128 + pool, residual 128, conv 256 + pool, conv 512 + pool, residual 512, pool,
linear; every convolution is 3x3 and followed by batch norm and ReLU. With `stem=whiten` the first
one whitens 2x2 patches instead, without batch norm. The weights start as PyTorch's layers do, as in
the notebooks whose accuracy is known. Two differences from them, which change nothing for 32x32
images: the convolutions have no bias unless `conv_bias` says so (batch norm subtracts it again),
and the last pooling spans whatever is left, so that other sizes work too.

`zero_init_last_gamma` has no meaning here: a residual branch ends in ReLU, where a zero gamma
and beta would get no gradient and the branch would never start to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_dist.config import ModelConfig
from resnet_dist.models.init import initialise
from resnet_dist.models.whitening import WhiteningConvolution


def _unit(
    in_channels: int, out_channels: int, *, config: ModelConfig, pool: bool = False
) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, and 2x2 max-pool if wanted."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=config.conv_bias),
        nn.BatchNorm2d(
            out_channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        ),
        nn.ReLU(inplace=True),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class ResNet9(nn.Module):
    """Images `[N, in_channels, H, W]`, H and W at least 8 (9 with
    `stem=whiten`), to logits `[N, num_classes]`."""

    def __init__(self, *, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = _unit(config.in_channels, width, config=config)
        channels = width
        if config.stem == "whiten":
            whitening = WhiteningConvolution(config.in_channels)
            self.conv1 = nn.Sequential(whitening, nn.ReLU(inplace=True))
            channels = whitening.out_channels
        self.conv2 = _unit(channels, 2 * width, config=config, pool=True)
        self.res1 = nn.Sequential(
            _unit(2 * width, 2 * width, config=config), _unit(2 * width, 2 * width, config=config)
        )
        self.conv3 = _unit(2 * width, 4 * width, config=config, pool=True)
        self.conv4 = _unit(4 * width, 8 * width, config=config, pool=True)
        self.res2 = nn.Sequential(
            _unit(8 * width, 8 * width, config=config), _unit(8 * width, 8 * width, config=config)
        )
        self.fc = nn.Linear(8 * width, num_classes)
        initialise(self, config)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv2(self.conv1(images))
        x = self.res1(x) + x
        x = self.conv4(self.conv3(x))
        return self.classify(self.res2(x) + x)

    def classify(self, x: Tensor) -> Tensor:
        """Logits from the features after the last convolution."""
        # Not adaptive max-pooling: its backward on GPUs is not deterministic.
        x = F.max_pool2d(x, (x.shape[2], x.shape[3]))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits
