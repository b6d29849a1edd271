"""A first layer that whitens 2 x 2 patches of the images it is given: `model.stem=whiten`.

After Page 2019 ("How to train your ResNet", part 8) and Jordan 2024 (arXiv:2404.00498, section
3.2): the filters are the principal directions of the training images' patches, each divided by its
standard deviation, and their negatives, for the ReLU that follows. Only the bias is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SIDE = 2
_IMAGES = 64
"""At a time, to save memory."""
_EPS = 5e-4
"""Added to the variances (airbench's)."""


class WhiteningConvolution(nn.Conv2d):
    """`[N, in_channels, H, W]` to `[N, 8 * in_channels, H - 1, W - 1]`; random until `whiten`."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 2 * in_channels * _SIDE**2, _SIDE)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def second_moments(self, images: Tensor) -> Tensor:
        """Sums over the patches of `[N, in_channels, H, W]`: `[d + 1, d + 1]` float64 for
        d = 4 * in_channels values and a 1, so that the last element is the number of patches."""
        size = self.weight[0].numel() + 1
        total = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        for part in torch.split(images, _IMAGES):
            patches = F.unfold(part.float(), _SIDE).transpose(1, 2).flatten(0, 1)
            patches = F.pad(patches, (0, 1), value=1.0).double()
            total += patches.T @ patches
        return total

    @torch.no_grad()
    def whiten(self, moments: Tensor) -> None:
        """Set the filters from sums of `second_moments`; the bias starts at 0."""
        moments = moments.cpu()
        variances, directions = torch.linalg.eigh(moments[:-1, :-1] / moments[-1, -1])
        filters = (directions / torch.sqrt(variances + _EPS)).T.flip(0)
        # A direction has no sign: its largest element is the positive one.
        largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
        filters = (filters * largest.sign()).view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))
        assert self.bias is not None
        self.bias.zero_()


def find_whitening(model: nn.Module) -> WhiteningConvolution | None:
    """The whitening layer of a network, if it has one."""
    return next((m for m in model.modules() if isinstance(m, WhiteningConvolution)), None)
