"""From a model section to a network: the registry, and initial weights that follow from the seed.

A new network is a function and one line in `MODELS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from resnet_dist.config import ModelConfig
from resnet_dist.errors import UserError
from resnet_dist.models.resnet import BasicBlock, Block, Bottleneck, ResNet
from resnet_dist.models.resnet9 import ResNet9
from resnet_dist.rng import Stream, derive_seed

Builder = Callable[[ModelConfig, int], nn.Module]


def _resnet(
    config: ModelConfig, num_classes: int, *, block: Block, depths: tuple[int, int, int, int]
) -> nn.Module:
    if config.stem == "d" and config.width % 2:
        raise UserError(
            f"model.width ({config.width}): must be even for model.stem=d, whose first two "
            f"convolutions have half of it; 64 is standard"
        )
    return ResNet(block, depths, config=config, num_classes=num_classes)


def _resnet9(config: ModelConfig, num_classes: int) -> nn.Module:
    plain = ModelConfig()
    for field in ("stem", "stride"):
        value = getattr(config, field)
        if value != getattr(plain, field):
            raise UserError(
                f"model.{field} ({value!r}): does not go with model.name=resnet9, whose layers are "
                f"fixed; leave it out, or take resnet18 with model.stem=cifar for small images"
            )
    return ResNet9(config=config, num_classes=num_classes)


MODELS: dict[str, Builder] = {
    "resnet9": _resnet9,
    "resnet18": partial(_resnet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": partial(_resnet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": partial(_resnet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": partial(_resnet, block=Bottleneck, depths=(3, 4, 23, 3)),
    "resnet152": partial(_resnet, block=Bottleneck, depths=(3, 8, 36, 3)),
}


def build_model(config: ModelConfig, *, num_classes: int, seed: int) -> nn.Module:
    """The network on the CPU in float32, in training mode.

    Its weights are a function of `config`, `num_classes` and `seed` alone, and no random state of
    torch is touched. `num_classes` is the number of outputs, whatever `config.num_classes` says:
    the caller knows the data. Raises UserError for an unknown name or settings that do not go
    together.
    """
    if config.name not in MODELS:
        near = difflib.get_close_matches(config.name.lower(), MODELS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"model.name ({config.name!r}): is not a known model; {hint}choose one of "
            f"{', '.join(MODELS)}"
        )
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs' generators too.
        torch.default_generator.manual_seed(derive_seed(seed, Stream.INIT))
        return MODELS[config.name](config, num_classes)
