"""What is not trained: `model.freeze`."""

from __future__ import annotations

from torch import nn

from resnet_dist.errors import UserError


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by its running statistics, which stay as they are, also in training."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Always in evaluation mode."""
        del mode
        super().train(False)
        return self


def freeze(model: nn.Module, what: str, *, head: nn.Module) -> None:
    """Take part of a network out of training, in place: parameters get no gradient, and batch norms
    keep their statistics.

    `what`: a value of `model.freeze`; `head`: the last layer. Raises UserError for a stage that the
    network does not have.
    """
    if what == "none":
        return
    for module in _frozen(model, what, head):
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        _freeze_norms(module)


def _frozen(model: nn.Module, what: str, head: nn.Module) -> list[nn.Module]:
    if what == "bn":
        kinds = nn.modules.batchnorm._BatchNorm
        return [module for module in model.modules() if isinstance(module, kinds)]
    if what == "backbone":
        own = set(head.modules())
        return [m for m in model.modules() if m not in own and not own & set(m.modules())]
    children = dict(model.named_children())
    last = f"layer{what.removeprefix('stage')}"
    if last not in children:
        raise UserError(
            f"model.freeze ({what}): this network has no part called {last}; set it to bn or "
            f"backbone"
        )
    names = list(children)
    return [children[name] for name in names[: names.index(last) + 1]]


def _freeze_norms(module: nn.Module) -> None:
    """Batch norms at and below a module, their class changed in place."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = FrozenBatchNorm2d
            part.train(False)
