"""What augmentation costs, and how far it is from torchvision's.

    python benchmarks/augmentation.py --images DIR [--rounds 5] [--seconds 3]

DIR is a folder of class folders. First each operation of RandAugment and its kin: its difference to
torchvision's own transform at three strengths, and its processor time an image, one thread. Then
whole loaders in turn, with the settings of the recipe resnet50_tv_v2 and without.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loaders import MEAN, SIZE, STD, Rate, Setup, measure, ours, print_versions, read_rgb, repeated
from torch.nn import functional
from torch.utils.data import DataLoader, default_collate
from torchvision import datasets
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from resnet_dist.data.augment import auto_augment, pixel_ops
from resnet_dist.data.augment.codes import Code
from resnet_dist.data.batch import Operations

NUM_IMAGES = 50
RECIPE: dict[str, Any] = {
    "auto_augment": "ta_wide",
    "erase_probability": 0.1,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
}
FACTORS = (Code.BRIGHTNESS, Code.COLOR, Code.CONTRAST, Code.SHARPNESS)


def sample_images(folder: Path) -> torch.Tensor:
    """`[n, 224, 224, 3]` uint8."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    rows = []
    for path in paths[:: max(1, len(paths) // NUM_IMAGES)][:NUM_IMAGES]:
        image = decode_image(str(path), mode=ImageReadMode.RGB)[None]
        rows.append(functional.interpolate(image, [SIZE, SIZE], mode="bilinear", antialias=True))
    return torch.cat(rows).permute(0, 2, 3, 1).contiguous()


def theirs(images: torch.Tensor, code: Code, magnitude: float) -> torch.Tensor:
    """torchvision's transform of each image."""
    if code == Code.HUE:
        return v2.functional.adjust_hue(images.permute(0, 3, 1, 2), magnitude).permute(0, 2, 3, 1)
    transform = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    given = magnitude - 1 if code in FACTORS else magnitude
    given = magnitude / 255 if code == Code.SOLARIZE else given
    name = "".join(part.capitalize() for part in code.name.split("_"))
    results = [
        transform._apply_image_or_video_transform(
            image, name, given, transform.interpolation, transform._fill
        )
        for image in images.permute(0, 3, 1, 2)
    ]
    return torch.stack(results).permute(0, 2, 3, 1)


def print_operations(images: torch.Tensor) -> None:
    """A row an operation, as Markdown."""
    print("| operation | each: mean (largest) | batched: mean (largest) | each, ms | batched, ms |")
    print("|---|---:|---:|---:|---:|")
    for code in Code:
        strengths = [0.5, -0.1, 0.25] if code == Code.HUE else magnitudes(code)
        worst = {"each": (0.0, 0), "batched": (0.0, 0)}
        seconds = {"each": 0.0, "batched": 0.0}
        for magnitude in strengths:
            shape = (len(images), 1)
            chosen = Operations(np.full(shape, code, np.int8), np.full(shape, magnitude))
            expected = theirs(images, code, magnitude).int()
            for name in worst:
                result = images.clone()
                start = time.process_time()
                if name == "each":
                    pixel_ops.apply_each(result, chosen)
                else:
                    result = pixel_ops.apply_batched(images, chosen)
                seconds[name] += time.process_time() - start
                difference = (result.int() - expected).abs()
                mean = difference.float().mean().item()
                worst[name] = max(worst[name], (mean, int(difference.max())))
        ms = {name: 1000 * total / len(images) / len(strengths) for name, total in seconds.items()}
        shown = {name: f"{mean:.4f} ({largest})" for name, (mean, largest) in worst.items()}
        print(
            f"| {code.name.lower()} | {shown['each']} | {shown['batched']} "
            f"| {ms['each']:.2f} | {ms['batched']:.2f} |"
        )


def magnitudes(code: Code) -> list[float]:
    """The strongest, a middle and a weak one of TrivialAugmentWide."""
    strengths = auto_augment.trivial_augment_table()[code][[30, 15, 4]]
    return [
        float(
            1 + value if code in FACTORS else np.trunc(value) if "TRANSLATE" in code.name else value
        )
        for value in strengths
    ]


def torchvisions(setup: Setup) -> Iterator[torch.Tensor]:
    """ImageFolder and DataLoader with torchvision's own transforms of the same recipe."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=0.1),
        ]
    )
    folder = str(setup.root / "train")
    dataset = datasets.ImageFolder(folder, transform=transform, loader=read_rgb)
    classes = len(dataset.classes)
    mix = v2.RandomChoice(
        [v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)]
    )
    loader = DataLoader(
        dataset,
        batch_size=setup.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=setup.num_workers,
        collate_fn=lambda samples: mix(*default_collate(samples)),
    )
    while True:
        for images, _ in loader:
            yield images


LOADERS: dict[str, Callable[[Setup], Iterator[torch.Tensor]]] = {
    "torch": lambda setup: ours(setup, "torch"),
    "torch, recipe": lambda setup: ours(setup, "torch", **RECIPE),
    "torchvision_v2, recipe": torchvisions,
    "dali": lambda setup: ours(setup, "dali"),
    "dali, recipe": lambda setup: ours(setup, "dali", **RECIPE),
}


def print_loaders(setup: Setup, rounds: int, seconds: float) -> None:
    """Medians of all rounds, as Markdown; the first round is not counted."""
    rates: dict[str, list[Rate]] = {name: [] for name in LOADERS}
    for number in range(rounds + 1):
        for name, start in LOADERS.items():
            rate = measure(start, setup, seconds=seconds if number else 1.0)
            if number:
                rates[name].append(rate)
    print("\n| loader | images/s, median | lowest | highest | CPU ms an image, median |")
    print("|---|---:|---:|---:|---:|")
    for name, of in rates.items():
        speed = [rate.images_per_second for rate in of]
        cpu = statistics.median(rate.cpu_ms_per_image for rate in of)
        print(
            f"| {name} | {statistics.median(speed):.0f} | {min(speed):.0f} | {max(speed):.0f} "
            f"| {cpu:.2f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each loader in each round")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Corrupt EXIF data")
    torch.set_num_threads(1)  # more of them wait busily for each other, which counts as work
    print_operations(sample_images(args.images))
    with repeated(args.images, at_least=10_000) as root:
        setup = Setup(root, batch_size=64, num_workers=2)
        print_versions(setup)
        print_loaders(setup, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
