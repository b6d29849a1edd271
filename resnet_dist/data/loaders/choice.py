"""Which backend `data.loader` stands for on a device."""

from __future__ import annotations

from typing import Literal

import torch

from resnet_dist.config import DataConfig
from resnet_dist.errors import UserError
from resnet_dist.run import dali_package
from resnet_dist.system import workers


def choose_loader(
    data: DataConfig, device: torch.device
) -> Literal["dali", "torch", "memory", "synthetic"]:
    """The loader that `data.loader` stands for on a device: auto is dali on a GPU, torch on CPU.

    Raises UserError if that is dali and DALI is not installed, or not for this driver.
    """
    name = data.loader
    if name == "auto":
        name = "dali" if device.type == "cuda" else "torch"
    if name == "dali":
        driver = dali_package.driver_version() if device.type == "cuda" else None
        problem = dali_package.conflict(driver, torch.version.cuda)
        if problem is not None:
            raise UserError(
                f"data.loader ({data.loader}): {problem}, or set data.loader=torch (slower on a "
                f"GPU)"
            )
    return name


def start_loader_server(data: DataConfig, device: torch.device) -> None:
    """Begin to start what the torch loader's processes are forked from, also those that fill the
    memory loader; returns at once."""
    if choose_loader(data, device) in ("torch", "memory"):
        workers.start_server()
