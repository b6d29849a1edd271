"""The CIFAR-10 recipe in a plain training loop: what accuracy do the data and the recipe give?

    python benchmarks/cifar10_control.py /data/cifar10 [--seed 0] [--threads 2]

A control for `configs/cifar10_resnet9.yaml`: one process, torchvision's own transforms, torch's own
Adam, OneCycleLR and DataLoader, nothing of this package but the network's definition. Prints loss
and accuracy of each epoch.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnet_dist.config import ModelConfig
from resnet_dist.models.resnet9 import ResNet9

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCHS, BATCH, PEAK_LR, WEIGHT_DECAY, CLIP = 8, 400, 0.01, 1e-4, 0.1


def loaders(root: Path) -> tuple[DataLoader[object], DataLoader[object]]:
    """Training in random order, all of it; test."""
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    crop = v2.RandomCrop(32, padding=4, padding_mode="reflect")
    train = ImageFolder(root / "train", v2.Compose([crop, v2.RandomHorizontalFlip(), *end]))
    test = ImageFolder(root / "test", v2.Compose(end))
    return (
        DataLoader(train, BATCH, shuffle=True, num_workers=1, drop_last=True),
        DataLoader(test, BATCH, num_workers=1),
    )


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder with train/ and test/ of class folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    train, test = loaders(arguments.root)
    model: nn.Module = ResNet9(config=ModelConfig(name="resnet9"), num_classes=10)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), PEAK_LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, epochs=EPOCHS, steps_per_epoch=len(train)
    )
    for epoch in range(1, EPOCHS + 1):
        began, total, correct, seen = time.perf_counter(), 0.0, 0, 0
        model.train()
        for images, labels in train:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
        print(
            f"epoch {epoch}  train loss {total / seen:.4f} top1 {correct / seen:.2%}  "
            f"test top1 {accuracy(model, test):.2%}  {time.perf_counter() - began:.0f} s",
            flush=True,
        )


@torch.inference_mode()
def accuracy(model: nn.Module, test: DataLoader[object]) -> float:
    """Top-1 of the test set."""
    model.eval()
    correct = count = 0
    for images, labels in test:  # type: ignore[misc]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.contiguous(memory_format=torch.channels_last))  # type: ignore[has-type]
        correct += int((logits.argmax(1) == labels).sum())  # type: ignore[has-type]
        count += len(labels)  # type: ignore[has-type]
    return correct / count


if __name__ == "__main__":
    main()
