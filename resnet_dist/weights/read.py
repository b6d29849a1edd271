"""Weights from any file that people have: ours, torchvision's, timm's, wrapped or not.

Owns what a file may look like. Which network they belong to is `architecture`'s, whether they fit
is `fit`'s.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_dist.checkpoint.files import check_content, decode_checkpoint, read_verified
from resnet_dist.errors import UserError
from resnet_dist.system.paths import expanded

TORCHVISION = "torchvision:"
METADATA = "resnet_dist"
"""Key of an exported file's metadata: classes, settings, step."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DDP, torch.compile and wrappers put before each name."""
_MODEL_KEYS = ("model", "state_dict", "model_state_dict", "net", "params")
_AVERAGE_KEYS = ("average", "model_ema", "state_dict_ema", "ema_state_dict", "model_state_dict_ema")
_OUR_SIGN = b"sha256:"


@dataclass
class Weights:
    """The tensors of a file, and what it says about them."""

    path: str
    tensors: dict[str, Tensor]
    average: dict[str, Tensor] | None = None
    """The moving average, if the file has one."""
    classes: list[str] | None = None
    """Names by output; None: the file does not say."""
    settings: dict[str, Any] | None = None
    """Every setting of the run by dotted path; None: the file is not ours."""
    step: int | None = None
    notes: list[str] = field(default_factory=list)
    """What a person should know about how the file was read."""

    def choose(self, *, average: bool) -> dict[str, Tensor]:
        """The weights, or their moving average. Raises UserError if there is none."""
        if not average:
            return self.tensors
        if self.average is None:
            raise UserError(f"weights ({self.path}): hold no moving average; do not ask for it")
        return self.average


def read_weights(source: str, *, model_name: str | None = None) -> Weights:
    """The weights in a file, or torchvision's published ones by name.

    `source`: a checkpoint of ours; a state dict of torchvision, timm or another program as .pth,
    .pt, .tar or .safetensors; `torchvision:IMAGENET1K_V2` for the network `model_name`, or
    `torchvision:resnet50:IMAGENET1K_V2`. Raises UserError.
    """
    if source.startswith(TORCHVISION):
        return _published(source, model_name)
    path = expanded(source, "weights")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"weights ({path}): {what}; give a file (.pt, .pth, .safetensors), or "
            f"torchvision:IMAGENET1K_V2"
        )
    try:
        if path.suffix == ".safetensors":
            return _from_safetensors(path)
        if _is_ours(path):
            return _from_checkpoint(path, decode_checkpoint(read_verified(path), path))
        return _from_torch(path)
    except OSError as error:
        raise UserError(f"weights ({path}): cannot be read ({error.strerror or error})") from None


def _is_ours(path: Path) -> bool:
    """Whether a file ends with our checksum."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 128))
        return _OUR_SIGN in file.read()


def _from_checkpoint(path: Path, payload: Mapping[str, Any]) -> Weights:
    check_content(payload, path)
    return Weights(
        path=str(path),
        tensors=payload["model"],
        average=payload["average"],
        classes=list(payload["classes"]),
        settings=dict(payload["config"]),
        step=payload["step"],
    )


def _from_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"weights ({path}): are no whole safetensors file ({error}); fetch the file again"
        ) from None
    weights = Weights(str(path), _unwrapped(tensors))
    _take_metadata(weights, metadata.get(METADATA))
    return weights


def _take_metadata(weights: Weights, text: object) -> None:
    """What `resnet-dist export` wrote beside the tensors."""
    try:
        said = json.loads(text) if isinstance(text, str) else {}
        weights.classes = [str(name) for name in said["classes"]] if said.get("classes") else None
        weights.settings = dict(said["settings"]) if said.get("settings") else None
        weights.step = int(said["step"]) if said.get("step") is not None else None
    except (ValueError, TypeError, AttributeError):
        weights.notes.append(f"the metadata of {weights.path} is not ours, and was not used")


def _from_torch(path: Path) -> Weights:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for what it cannot read
        said = "is cut off, or no file of torch; fetch or copy it again"
        if zipfile.is_zipfile(path):
            said = "holds pickled objects, which could run any code; save its state_dict() alone"
        raise UserError(f"weights ({path}): {said} ({type(error).__name__})") from None
    tensors = _find(loaded, _MODEL_KEYS)
    if tensors is None:
        raise UserError(
            f"weights ({path}): hold no state dict (tensors by name, or one below "
            f"{', '.join(_MODEL_KEYS)})"
        )
    average = _find(loaded, _AVERAGE_KEYS, is_nested=True)
    weights = Weights(str(path), tensors, average)
    if isinstance(loaded, Mapping):
        _take_metadata(weights, loaded.get(METADATA))
    return weights


def _find(
    loaded: object, keys: tuple[str, ...], *, is_nested: bool = False
) -> dict[str, Tensor] | None:
    """The first state dict below one of the keys, or the whole if it is one."""
    if not isinstance(loaded, Mapping):
        return None
    for key in keys:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and _tensors_of(inner):
            return _unwrapped(_tensors_of(inner))
    whole = {} if is_nested else _tensors_of(loaded)
    return _unwrapped(whole) if whole else None


def _tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers put before every name, and without the count of averaged updates."""
    tensors = {name: value for name, value in tensors.items() if name != "n_averaged"}
    while True:
        for prefix in _PREFIXES:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                break
        else:
            return tensors


def _published(source: str, model_name: str | None) -> Weights:
    """Weights that torchvision publishes, through its own loader and cache."""
    from torchvision.models import get_model_weights

    name, _, version = source.removeprefix(TORCHVISION).rpartition(":")
    name = (name or model_name or "").removeprefix(TORCHVISION)
    try:
        known = get_model_weights(name)
        weights = known[version]
    except ValueError:
        raise UserError(
            f"weights ({source}): torchvision has no network {name!r}; give a file, or another "
            f"model.name"
        ) from None
    except KeyError:
        raise UserError(
            f"weights ({source}): torchvision publishes {', '.join(known.__members__)} for "
            f"{name}; choose one of them"
        ) from None
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a proxy's page, a full disk
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"weights ({source}): cannot be fetched from {weights.url} ({error}); fetch that file "
            f"on a machine with a network into {folder}, or give its path"
        ) from None
    found = Weights(source, dict(tensors))
    categories = weights.meta.get("categories")
    found.classes = list(categories) if categories and len(categories) != 1000 else None
    return found
