"""Images per second of our loaders and of what is usually used instead.

    python benchmarks/loaders.py --images DIR [--rounds 7] [--seconds 6] [--loaders dali,torch]

DIR is a folder of class folders. It is listed many times over, so that an epoch is not tiny. Every
loader does the same: batches of 64 random resized crops of 224 px, antialiased, flipped, as
normalised float32 in the main process, with 2 threads or processes. The loaders take turns in every
round, each started afresh and warmed up, so that a drift of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from resnet_dist.config import AugmentConfig, DaliConfig, DataConfig
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import open_index
from resnet_dist.data.loaders.build import build_train_loader
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder

SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WARM_UP_BATCHES = 6
# (what is measured, what it is measured against, least acceptable ratio)
BARS = [
    ("dali", "dali_native", 0.97),
    ("torch", "torchvision_v2", 1.0),
    ("torch", "torchvision_v2_pil", 1.0),
    ("torch", "pytorch_examples", 1.3),
    ("torch", "dali", 0.0),  # no bar: tells which should be the default
]


@dataclass(frozen=True)
class Setup:
    """What all loaders are given."""

    root: Path
    """Holds train/, a folder of class folders."""
    batch_size: int
    num_workers: int


def ours(setup: Setup, name: Any, **recipe: Any) -> Iterator[torch.Tensor]:
    """A loader of this package, with settings of section augment."""
    root = setup.root
    data = DataConfig(root=str(root), cache_dir=str(root / "cache"), loader=name)
    index = open_index(data, "train", build=True, show_progress=False)
    order = SampleOrder(len(index), setup.batch_size, seed=time.time_ns() % 2**32)
    datasets = Datasets(data, AugmentConfig(**recipe), index, index, order, 1000, False)
    loader = build_train_loader(
        datasets,
        DaliConfig(),
        batch_split=BatchSplit(setup.batch_size, 1, 1),
        rank=0,
        device=torch.device("cpu"),
        num_workers=setup.num_workers,
    )
    with contextlib.closing(loader.batches(0, 10**9)) as batches:
        for batch in batches:
            yield batch.images


def dali_native(setup: Setup) -> Iterator[torch.Tensor]:
    """DALI as its documentation shows it: it reads, shuffles and samples the crops itself."""
    root = str(setup.root / "train")
    return dali_reading(
        setup, lambda fn: fn.readers.file(file_root=root, random_shuffle=True, name="reader")
    )


def dali_reading(setup: Setup, read: Callable[[Any], Any]) -> Iterator[torch.Tensor]:
    """DALI's own pipeline behind one of its readers; `read(fn)` gives encoded images and labels."""
    from nvidia import dali as untyped_dali

    dali: Any = untyped_dali
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(
        batch_size=setup.batch_size,
        num_threads=setup.num_workers,
        device_id=None,
        prefetch_queue_depth=2,
    )
    with pipeline:
        encoded, labels = read(fn)
        images = fn.decoders.image_random_crop(
            encoded,
            random_aspect_ratio=[3 / 4, 4 / 3],
            random_area=[0.08, 1.0],
            output_type=types.RGB,
        )
        images = fn.resize(images, size=[SIZE, SIZE], antialias=True)
        images = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(images, labels)
    while True:
        output, _ = pipeline.run()
        yield torch.utils.dlpack.from_dlpack(output.as_tensor())


def image_folder(
    setup: Setup,
    transform: Callable[[Any], torch.Tensor],
    load: Callable[[str], Any] = datasets.folder.default_loader,
) -> Iterator[torch.Tensor]:
    """torch's DataLoader over torchvision's ImageFolder."""
    dataset = datasets.ImageFolder(str(setup.root / "train"), transform=transform, loader=load)
    loader = DataLoader(
        dataset,
        batch_size=setup.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=setup.num_workers,
    )
    while True:
        for images, _ in loader:
            yield images


def read_rgb(path: str) -> torch.Tensor:
    """torchvision's own decoder, as its reference recipes use it with tensors."""
    image: torch.Tensor = decode_image(path, mode=ImageReadMode.RGB)
    return image


def v2_transform(first: list[Any]) -> v2.Compose:
    """torchvision's second generation of transforms, on uint8 until the last moment."""
    return v2.Compose(
        [
            *first,
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def examples_transform() -> v1.Compose:
    """The transform of pytorch/examples, imagenet/main.py."""
    crop, flip = v1.RandomResizedCrop(SIZE), v1.RandomHorizontalFlip()
    return v1.Compose([crop, flip, v1.ToTensor(), v1.Normalize(MEAN, STD)])


Start = Callable[[Setup], Iterator[torch.Tensor]]
LOADERS: dict[str, Start] = {
    "dali_native": dali_native,
    "dali": lambda setup: ours(setup, "dali"),
    "torch": lambda setup: ours(setup, "torch"),
    "torchvision_v2": lambda setup: image_folder(setup, v2_transform([]), read_rgb),
    "torchvision_v2_pil": lambda setup: image_folder(setup, v2_transform([v2.PILToTensor()])),
    "pytorch_examples": lambda setup: image_folder(setup, examples_transform()),
}


def cpu_seconds() -> float:
    """Processor time of this process and its workers. Where other programs use the machine too, it
    says more than the clock does: on few cores a loader is as fast as it is thrifty."""
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True)
class Rate:
    """What one loader did in one round."""

    images_per_second: float
    cpu_ms_per_image: float


def measure(
    start: Callable[[Setup], Iterator[torch.Tensor]], setup: Setup, *, seconds: float
) -> Rate:
    """Of a fresh iterator, from one batch to a later one."""
    batches = start(setup)
    for _ in range(WARM_UP_BATCHES):
        images = next(batches)
    assert images.shape == (setup.batch_size, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    began = now = time.perf_counter()
    cpu = cpu_seconds()
    num_batches = 0
    # Whole turns of the workers, who finish their batches at nearly the same time.
    while now - began < seconds or num_batches % setup.num_workers:
        images = next(batches)
        num_batches += 1
        now = time.perf_counter()
    cpu = cpu_seconds() - cpu
    batches.close()  # type: ignore[attr-defined]
    num_images = num_batches * setup.batch_size
    return Rate(num_images / (now - began), 1000 * cpu / num_images)


@contextlib.contextmanager
def repeated(images: Path, *, at_least: int) -> Iterator[Path]:
    """A root whose train/ lists the class folders as often as it takes to reach `at_least`."""
    classes = sorted(path for path in images.resolve().iterdir() if path.is_dir())
    num_images = sum(len(list(path.iterdir())) for path in classes)
    assert num_images, f"--images ({images}): holds no class folders with images"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "train").mkdir()
        for turn in range(-(-at_least // num_images)):
            for path in classes:
                (root / "train" / f"{path.name}-{turn}").symlink_to(path)
        yield root


def print_versions(setup: Setup) -> None:
    """What the figures were measured with."""
    names = ("torch", "torchvision", "nvidia-dali-cuda130", "pillow", "numpy")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores; "
        f"batch {setup.batch_size}, {setup.num_workers} workers or threads"
    )


def print_tables(
    rates: dict[str, list[Rate]], bars: Sequence[tuple[str, str, float]] = tuple(BARS)
) -> None:
    """Medians, spreads, and ratios of loaders in the same round, as Markdown."""
    print("\n| loader | images/s, median | lowest | highest | CPU ms an image, median |")
    print("|---|---:|---:|---:|---:|")
    speed = {name: [rate.images_per_second for rate in of] for name, of in rates.items()}
    for name, values in speed.items():
        cpu = statistics.median(rate.cpu_ms_per_image for rate in rates[name])
        print(
            f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} "
            f"| {max(values):.0f} | {cpu:.2f} |"
        )
    print("\n| ratio | of medians | median of rounds | lowest | highest | bar |")
    print("|---|---:|---:|---:|---:|---:|")
    for above, below, bar in bars:
        if above in speed and below in speed:
            ratios = [a / b for a, b in zip(speed[above], speed[below], strict=True)]
            medians = statistics.median(speed[above]) / statistics.median(speed[below])
            print(
                f"| {above} / {below} | {medians:.3f} | {statistics.median(ratios):.3f} "
                f"| {min(ratios):.3f} | {max(ratios):.3f} | {bar} |"
            )


def take_turns(
    loaders: dict[str, Start], setup: Setup, *, rounds: int, seconds: float
) -> dict[str, list[Rate]]:
    """Measure all loaders in every round; the first fills the page cache and is not counted."""
    rates: dict[str, list[Rate]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, start in loaders.items():
            rate = measure(start, setup, seconds=seconds if number else 1.0)
            if number:
                rates[name].append(rate)
        if number:
            latest = {name: round(of[-1].images_per_second) for name, of in rates.items()}
            print(number, latest, flush=True)
    return rates


def parse_arguments(description: str, names: Sequence[str]) -> argparse.Namespace:
    """The command line that the benchmarks of loaders share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each loader in each round")
    parser.add_argument("--loaders", default=",".join(names), help="names, with commas")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Corrupt EXIF data")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "", list(LOADERS))
    chosen = {name: LOADERS[name] for name in args.loaders.split(",")}
    with repeated(args.images, at_least=10_000) as root:
        setup = Setup(root, args.batch_size, args.num_workers)
        print_versions(setup)
        rates = take_turns(chosen, setup, rounds=args.rounds, seconds=args.seconds)
    print_tables(rates)


if __name__ == "__main__":
    main()
