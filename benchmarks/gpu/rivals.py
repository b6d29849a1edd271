"""What is usually used instead: torchvision's reference loop, and timm's model and step.

Both get the same fixed batch on the device, in channels-last memory. Written from what those
programs do; nothing of them is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

TORCHVISION_PRINTS_EVERY = 10
"""`--print-freq` of its references. They call `.item()` in every step; here only when they print,
so that the comparison is with the loop and not with that."""
TIMM_PRINTS_EVERY = 50
"""`--log-interval` of its train.py."""


@dataclass(frozen=True)
class Case:
    """What is trained."""

    model: str
    size: int
    """Side of the images, pixels."""
    dtype: str
    """bfloat16 or float16 (float32 works too)."""
    batch: int
    width: int = 64
    """Of ours alone, for runs in miniature; the others always have 64."""

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.model} {self.size} px {self.dtype} batch {self.batch}"


def torchvision_step(
    case: Case, images: Tensor, labels: Tensor, device: torch.device
) -> Callable[[], None]:
    """A step as in torchvision's references/classification/train.py with --amp."""
    model = torchvision.models.get_model(case.model, num_classes=1000)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device.type, enabled=case.dtype == "float16")
    dtype = getattr(torch, case.dtype)
    calls = 0

    def step() -> None:
        nonlocal calls
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            output = model(images)
            loss = criterion(output, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        top = output.detach().topk(5, dim=1).indices == labels[:, None]
        counts = [top[:, :k].sum() * (100.0 / labels.shape[0]) for k in (1, 5)]
        calls += 1
        if calls % TORCHVISION_PRINTS_EVERY == 0:
            _ = [value.item() for value in (loss, *counts)]

    return step


def timm_step(
    case: Case, images: Tensor, labels: Tensor, device: torch.device
) -> Callable[[], None]:
    """A step as in timm's train.py with --amp --channels-last. ImportError without timm."""
    import timm  # type: ignore[import-not-found,unused-ignore]
    from timm.optim import create_optimizer_v2  # type: ignore[import-not-found,unused-ignore]
    from timm.utils import NativeScaler  # type: ignore[import-not-found,unused-ignore]

    model: Any = timm.create_model(case.model, num_classes=1000)
    model = model.to(device=device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    scaler = NativeScaler(device=device.type) if case.dtype == "float16" else None
    dtype = getattr(torch, case.dtype)
    calls = 0

    def step() -> None:
        nonlocal calls
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            loss = criterion(model(images), labels)
        if scaler is not None:
            scaler(loss, optimizer, parameters=model.parameters())
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        calls += 1
        if calls % TIMM_PRINTS_EVERY == 0:
            loss.item()

    return step


RIVALS = {"torchvision": torchvision_step, "timm": timm_step}
