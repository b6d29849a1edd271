"""Which backend `data.loader` stands for on a device."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

from resnet_dist.config import DataConfig
from resnet_dist.errors import UserError
from resnet_dist.system import workers


def choose_loader(
    data: DataConfig, device: torch.device
) -> Literal["dali", "torch", "memory", "synthetic"]:
    """The loader that `data.loader` stands for on a device: auto is dali on a GPU, torch on CPU.

    Raises UserError if that is dali and DALI is not installed.
    """
    name = data.loader
    if name == "auto":
        name = "dali" if device.type == "cuda" else "torch"
    if name == "dali" and not _is_dali_installed():
        raise UserError(
            f"data.loader ({data.loader}): NVIDIA DALI is not installed; install "
            f"nvidia-dali-cuda130, or set data.loader=torch"
        )
    return name


def start_loader_server(data: DataConfig, device: torch.device) -> None:
    """Begin to start what the torch loader's processes are forked from, also those that fill the
    memory loader; returns at once."""
    if choose_loader(data, device) in ("torch", "memory"):
        workers.start_server()


def _is_dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the package above it
        return False
