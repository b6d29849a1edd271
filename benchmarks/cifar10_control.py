"""The CIFAR-10 recipes in a plain training loop: what accuracy do the data and the recipe give?

    python benchmarks/cifar10_control.py /data/cifar10 [--recipe fast] [--seeds 0,1] [--device cuda]

A control for `configs/cifar10_resnet9.yaml` and `configs/cifar10_fast.yaml`: one process, the
images decoded by torchvision and held on the device, torch's own Adam, OneCycleLR and random
numbers, the whitening and Muon written down once more; nothing of this package but the network's
definition. Prints the accuracy after each epoch, without and with the mirror image of each image.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from resnet_dist.config import ModelConfig
from resnet_dist.models.resnet9 import ResNet9

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIDE = 32
Data = tuple[Tensor, Tensor]
"""Normalised images `[n, 3, 32, 32]`, labels `[n]`."""


def read_split(folder: Path, device: torch.device) -> Data:
    """All images of class folders."""
    files = sorted(folder.glob("*/*"))
    classes = sorted({file.parent.name for file in files})

    def decode(file: Path) -> Tensor:
        return decode_jpeg(read_file(str(file)), mode=ImageReadMode.RGB)

    with ThreadPoolExecutor() as pool:
        images = torch.stack(list(pool.map(decode, files))).to(device, torch.float32)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    labels = torch.tensor([classes.index(file.parent.name) for file in files], device=device)
    images = ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    return images, labels


def moved_and_flipped(padded: Tensor, ids: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Crops `[n, 3, 32, 32]` at random places of images with reflected borders."""
    device = padded.device
    offsets = torch.randint(0, 2 * padding + 1, (len(ids), 2), device=device)
    places = torch.arange(SIDE, device=device)
    rows = offsets[:, :1] + places
    columns = offsets[:, 1:] + torch.where(flips[:, None], SIDE - 1 - places, places)
    channels = torch.arange(3, device=device)[None, :, None, None]
    found = padded[
        ids[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None]
    ]
    return found.contiguous(memory_format=torch.channels_last)


class Muon(torch.optim.Optimizer):
    """Nesterov's SGD, whose updates of filters are made orthogonal (Jordan 2024)."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, other_lr_factor: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": 0.6})
        self._other = other_lr_factor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(p.grad)
                update = p.grad + group["momentum"] * velocity
                if p.ndim < 4:
                    p.sub_(group["lr"] * self._other * update)
                    continue
                x = update.flatten(1).bfloat16()
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / x.norm().clamp(min=1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
                x = x.T if tall else x
                scale = math.sqrt(max(1.0, x.shape[0] / x.shape[1]))
                p.sub_(group["lr"] * scale * x.view(p.shape).to(p.dtype))


def whiten(layer: nn.Conv2d, images: Tensor) -> None:
    """Principal directions of the images' patches, and their negatives."""
    patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
    variances, directions = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu())
    filters = (directions / (variances + 5e-4).sqrt()).T.reshape(-1, 3, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([filters, -filters]))
        assert layer.bias is not None
        layer.bias.zero_()


def taught(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Callable[[int], None]]:
    """cifar10_resnet9's optimizer, and what sets it for a step."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps + 1)
    return optimizer, lambda step: schedule.step() if step else None


def fast(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Callable[[int], None]]:
    """cifar10_fast's."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Muon(trained, other_lr_factor=0.8)
    rise = steps // 4

    def set_rate(step: int) -> None:
        share = step / rise if step < rise else (steps - step) / (steps - rise)
        optimizer.param_groups[0]["lr"] = 0.24 * share

    return optimizer, set_rate


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder with train/ and test/ of class folders")
    parser.add_argument("--recipe", choices=["resnet9", "fast"], default="resnet9")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--epochs", type=int, help="default: the recipe's, 8 or 10")
    parser.add_argument("--max-steps", type=int, help="stop early, to see that it runs")
    args = parser.parse_args()
    data = tuple(read_split(args.root / split, args.device) for split in ("train", "test"))
    for seed in map(int, args.seeds.split(",")):
        train(data, args, seed)


def train(data: tuple[Data, ...], args: argparse.Namespace, seed: int) -> None:
    """One run."""
    is_fast = args.recipe == "fast"
    (images, labels), test = data
    batch, padding, smoothing = (500, 2, 0.2) if is_fast else (400, 4, 0.0)
    epochs = args.epochs or (10 if is_fast else 8)
    torch.manual_seed(seed)
    config = (
        ModelConfig(name="resnet9", width=32, stem="whiten")
        if is_fast
        else ModelConfig(name="resnet9")
    )
    model = ResNet9(config=config, num_classes=10)
    model.to(args.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if is_fast:
        whiten(model.conv1[0], images[:: len(images) // 500])  # type: ignore[arg-type]
    steps = len(labels) // batch * epochs
    optimizer, set_rate = (fast if is_fast else taught)(model, steps)
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    first = torch.rand(len(labels), device=args.device) < 0.5
    step, began = 0, time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for ids in torch.randperm(len(labels), device=args.device).split(batch)[: steps // epochs]:
            if step == args.max_steps:
                return
            flips = first[ids] ^ bool(epoch % 2)
            if not is_fast:
                flips = torch.rand(batch, device=args.device) < 0.5
            set_rate(step)
            with torch.autocast(args.device.type, torch.bfloat16):
                logits = model(moved_and_flipped(padded, ids, flips, padding))
            loss = F.cross_entropy(logits.float(), labels[ids], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not is_fast:
                nn.utils.clip_grad_value_(model.parameters(), 0.1)
            optimizer.step()
            step += 1
        alone, both = accuracy(model, *test)
        seconds = time.perf_counter() - began
        print(
            f"seed {seed} epoch {epoch + 1}  loss {float(loss.detach()):.3f}  top-1 {alone:.2%}, "
            f"with mirror images {both:.2%}  {seconds:.0f} s",
            flush=True,
        )


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 of images alone, and with their mirror images."""
    model.eval()
    right = torch.zeros(2)
    for part, wanted in zip(images.split(500), labels.split(500), strict=True):
        with torch.autocast(images.device.type, torch.bfloat16):
            alone, other = model(part).float(), model(part.flip(3)).float()
        for place, logits in enumerate((alone, alone + other)):
            right[place] += int((logits.argmax(1) == wanted).sum())
    alone_share, both_share = (right / len(labels)).tolist()
    return alone_share, both_share


if __name__ == "__main__":
    main()
