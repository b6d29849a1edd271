"""Weights into a network: names of other programs, and outputs by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resnet_dist.data.imagenet import imagenet_classes
from resnet_dist.errors import UserError
from resnet_dist.models.head import find_head
from resnet_dist.weights.architecture import guess_model
from resnet_dist.weights.read import Weights

_MOST_NAMED = 6


def classes_of(weights: Weights, outputs: int) -> list[str] | None:
    """The names of the outputs: those in the file, or ImageNet's for 1,000; None: not known."""
    if weights.classes is not None and len(weights.classes) <= outputs:
        return weights.classes
    return list(imagenet_classes()) if outputs == 1000 else None


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor], path: str) -> None:
    """Load a state dict that must fit. Raises UserError, naming the tensors that differ."""
    fitted = renamed(tensors, model)
    _check(model, fitted, path, except_for=())
    model.load_state_dict(fitted)


def start_from(
    model: nn.Module, weights: Weights, tensors: Mapping[str, Tensor], classes: Sequence[str]
) -> list[str]:
    """Load all but what is about other classes, for a new run whose data has `classes`.

    Outputs are taken over by the names of their classes if the file has them all; else the last
    layer stays as it is, which a line says. Returns notes. Raises UserError for other networks.
    """
    own = model.state_dict()
    head = find_head(model)
    fitted = renamed(tensors, model)
    _check(model, fitted, weights.path, except_for=head.tensors)
    before = fitted.get(f"{head.name}.weight")
    if before is None or before.shape[1:] != head.module.weight.shape[1:]:
        raise UserError(_misfit(weights.path, [f"{head.name}.weight (the last layer)"], fitted))
    notes = [f"starting from the weights in {weights.path}"]
    rows, note = _rows(weights, before.shape[0], list(classes), head.module.weight.shape[0])
    notes.append(note)
    for name in head.tensors:
        fitted[name] = own[name] if rows is None else fitted[name][rows]
    model.load_state_dict(fitted)
    return notes


def _rows(
    weights: Weights, outputs: int, classes: list[str], wanted: int
) -> tuple[Tensor | None, str]:
    """Which outputs of the file become the network's, and a line about it; None: a new layer."""
    known = classes_of(weights, outputs)
    if known is not None and wanted == len(classes) and set(classes) <= set(known):
        number = {name: i for i, name in enumerate(known)}
        same = "its" if classes == known else f"{len(classes)} of its {outputs}"
        rows = torch.tensor([number[name] for name in classes])
        return rows, f"the last layer is taken over for {same} classes, by their names"
    if known is None and outputs == wanted:
        return torch.arange(outputs), (
            f"the last layer is taken over; the file does not name its {outputs} classes, so they "
            f"are taken for the data's in order of their names"
        )
    return None, f"the last layer is new: {wanted} classes instead of the file's {outputs}" + (
        "" if wanted != outputs else ", which have other names"
    )


def renamed(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors by this network's names, in its types.

    Biases of convolutions that the network lacks are folded into the batch norm behind them, which
    subtracts them: the outputs stay the same. Counts of batches that a file lacks are 0.
    """
    own = model.state_dict()
    found = dict(tensors)
    if "fc.weight" in own and "fc.weight" not in found:  # the textbook ResNet-9's classifier
        for leaf in ("weight", "bias"):
            names = [
                name for name in found if name.startswith("classifier.") and name.endswith(leaf)
            ]
            if len(names) == 1:
                found[f"fc.{leaf}"] = found.pop(names[0])
    for name in [name for name in found if name.endswith(".bias") and name not in own]:
        norm = _norm_behind(name, found)
        if norm is not None and norm in found:
            found[norm] = found[norm] - found.pop(name)
    for name, value in own.items():
        if name.endswith("num_batches_tracked") and name not in found:
            found[name] = torch.zeros_like(value)
    return {
        name: value.to(own[name].dtype) if name in own else value for name, value in found.items()
    }


def _norm_behind(bias: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The running mean of the batch norm that follows the convolution with this bias."""
    layer = bias.removesuffix(".bias")
    above, _, last = layer.rpartition(".")
    parts = [f"{above}.{int(last) + 1}"] if last.isdigit() else []  # in a Sequential
    if last.startswith("conv") and last[4:].isdigit():  # conv2, bn2 of a block
        parts.append(f"{above}.bn{last[4:]}" if above else f"bn{last[4:]}")
    names = [f"{part}.running_mean" for part in parts]
    return next((name for name in names if name in tensors), None)


def _check(
    model: nn.Module, tensors: Mapping[str, Tensor], path: str, *, except_for: Sequence[str]
) -> None:
    own = model.state_dict()
    wrong = []
    for name in [*own, *(name for name in tensors if name not in own)]:
        if name in except_for:
            continue
        if name not in tensors:
            wrong.append(f"{name}: not in the file")
        elif name not in own:
            wrong.append(f"{name}: not in the network")
        elif own[name].shape != tensors[name].shape:
            wrong.append(f"{name}: {_shape(tensors[name])} in the file, {_shape(own[name])} here")
    if wrong:
        raise UserError(_misfit(path, wrong, tensors))


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _misfit(path: str, wrong: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    guess = guess_model(tensors)
    theirs = "set model.* to the network of the file"
    if guess is not None:
        told = ("model.name", "model.width", "model.stem")
        theirs = f"the file's is {' '.join(f'{key}={guess[key]}' for key in told if key in guess)}"
    more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    return (
        f"weights ({path}): are of another network; these tensors differ: "
        f"{'; '.join(wrong[:_MOST_NAMED])}{more}; {theirs}"
    )
