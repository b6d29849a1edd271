"""Networks of others: torchvision's and timm's by name, or a function of the user's.

They train with the same order of samples, sync batch norm, checkpoints and export. What draws
random numbers in a forward pass (dropout) gets them from seed, step and rank: see
`seed_forward`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from resnet_dist.config import ModelConfig
from resnet_dist.errors import UserError
from resnet_dist.rng import Stream, derive_seed

_DRAWS = (nn.modules.dropout._DropoutNd,)


def build_foreign(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network that `model.name` says. Raises UserError if it cannot be made."""
    source, _, name = config.name.partition(":")
    try:
        match source:
            case "torchvision":
                model = _from_torchvision(name, config, num_classes)
            case "timm":
                model = _from_timm(name, config, num_classes)
            case _:
                model = _from_function(source, name, num_classes)
    except UserError:
        raise
    except Exception as error:  # whatever a function of the user's raises
        raise UserError(
            f"model.name ({config.name}): the network cannot be made ({type(error).__name__}: "
            f"{error})"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name ({config.name}): gives a {type(model).__name__}, not a torch module"
        )
    return model


def _from_torchvision(name: str, config: ModelConfig, num_classes: int) -> Any:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"model.name ({config.name}): torchvision has no classifier of that name")
    if config.in_channels != 3:
        raise UserError(
            f"model.in_channels ({config.in_channels}): torchvision's networks take 3; leave it out"
        )
    builder = models.get_model_builder(name)
    if name in ("googlenet", "inception_v3"):  # one output, as of all others
        return builder(num_classes=num_classes, aux_logits=False, init_weights=True)
    return builder(num_classes=num_classes)


def _from_timm(name: str, config: ModelConfig, num_classes: int) -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"model.name ({config.name}): timm is not installed; `pip install timm`, or take a "
            f"network of this package or of torchvision"
        ) from None
    if not timm.is_model(name):
        raise UserError(f"model.name ({config.name}): timm has no network of that name")
    return timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=config.in_channels
    )


def _from_function(module: str, name: str, num_classes: int) -> Any:
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model.name ({module}:{name}): cannot be imported ({error}); install the package, or "
            f"put its folder on PYTHONPATH"
        ) from None
    return function(num_classes=num_classes)


def check_images(
    model: nn.Module, config: ModelConfig, *, setting: str, size: int, num_classes: int
) -> None:
    """Try images of `size` x `size` pixels, on the CPU. Raises UserError, which names `setting`, if
    the network cannot take them or does not give `[n, num_classes]`."""
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, config.in_channels, size, size))
    except Exception as error:  # whatever a network of others raises
        said = " ".join(str(error).split())
        raise UserError(
            f"{setting} ({size}): {config.name} cannot take images of that side "
            f"({type(error).__name__}: {said}); give another size"
        ) from None
    finally:
        model.train(was_training)
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [2, num_classes]:
        raise UserError(
            f"model.name ({config.name}): gives {shape} for two images, not [2, {num_classes}]: a "
            f"classifier of {num_classes} classes is needed"
        )


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers, as far as its layers tell.

    Dropout and timm's and torchvision's stochastic depth with a rate above 0.
    """
    for module in model.modules():
        rates = [getattr(module, key, 0) for key in ("p", "drop_prob", "drop_rate")]
        is_drop = isinstance(module, _DRAWS) or "Drop" in type(module).__name__
        is_drop = is_drop or type(module).__name__ == "StochasticDepth"
        if is_drop and any(isinstance(rate, float | int) and rate > 0 for rate in rates):
            return True
    return any(
        isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        for module in model.modules()
    )


def seed_forward(seed: int, rank: int, step: int) -> None:
    """Seed torch's generators for one rank's training step, so that a resumed run draws what the
    run would have drawn."""
    torch.manual_seed(derive_seed(seed, Stream.FORWARD, epoch=step, position=rank))
