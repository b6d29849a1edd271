"""Construction of a network from its config section: the registry, and weights that follow from the
seed.

A new network of ours is a function, one line in `MODELS`, and its name in
`resnet_dist.config.model`; networks of others are `foreign`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from resnet_dist.config import ModelConfig
from resnet_dist.config.model import DEPTHS
from resnet_dist.models.foreign import build_foreign
from resnet_dist.models.resnet import BasicBlock, Block, Bottleneck, ResNet
from resnet_dist.models.resnet9 import ResNet9
from resnet_dist.rng import Stream, derive_seed

Builder = Callable[[ModelConfig, int], nn.Module]


def _resnet(
    config: ModelConfig, num_classes: int, *, block: Block, depths: tuple[int, int, int, int]
) -> nn.Module:
    return ResNet(block, depths, config=config, num_classes=num_classes)


def _resnet9(config: ModelConfig, num_classes: int) -> nn.Module:
    return ResNet9(config=config, num_classes=num_classes)


def block_of(name: str) -> Block:
    """What the stages of a ResNet are made of."""
    return BasicBlock if name in ("resnet18", "resnet34") else Bottleneck


MODELS: dict[str, Builder] = {
    "resnet9": _resnet9,
    **{
        name: partial(_resnet, block=block_of(name), depths=depths)
        for name, depths in DEPTHS.items()
    },
}


def smallest_map(config: ModelConfig, size: int) -> int:
    """Side of the maps that the last batch norm of a network of ours sees, for images of `size`."""
    strides = 8 if config.name == "resnet9" or config.stem == "cifar" else 32
    return -(-size // strides)


def build_model(config: ModelConfig, *, num_classes: int, seed: int) -> nn.Module:
    """The network on the CPU in float32, in training mode.

    Its weights are a function of `config`, `num_classes` and `seed` alone, and no random state of
    torch is touched. `num_classes` is the number of outputs, whatever `config.num_classes` says:
    the caller knows the data. Raises UserError for a network of others that cannot be made.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs' generators too.
        torch.default_generator.manual_seed(derive_seed(seed, Stream.INIT))
        if config.is_foreign:
            return build_foreign(config, num_classes)
        return MODELS[config.name](config, num_classes)
