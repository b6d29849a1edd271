"""Images per second read from a disk when nothing of them is in the page cache.

    python benchmarks/data/cold_reads.py --images DIR [--copies 40] [--rounds 5] [--work /tmp]

DIR is a folder of class folders. It is copied several times over (real copies), and the copies are
packed. Then, in turn in every round: the whole epoch's samples are read, in batches of 256, by the
store that the loaders use, with nothing decoded:

- folder: image files in the shuffled order
- shards: the same order, from shards
- blocked: shards with data.order=blocked

Before each, what the page cache holds of these files is given up (POSIX_FADV_DONTNEED; names and
inodes stay cached, in the folder's favour). Bytes read from the disk are the kernel's count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from resnet_dist.config import DataConfig
from resnet_dist.data.blocked_order import blocks_of
from resnet_dist.data.index.index import open_index
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.read.store import open_store
from resnet_dist.prepare.__main__ import main as prepare

BATCH = 256
MB = 1e6


def copy_images(images: Path, folder: Path, copies: int) -> None:
    """`copies` times all class folders, to the disk."""
    for turn in range(copies):
        for path in sorted(images.iterdir()):
            if path.is_dir():
                shutil.copytree(path, folder / "train" / f"{path.name}-{turn}")
    os.sync()


def forget(root: Path) -> None:
    """Empty the page cache of all files below a folder."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def disk_bytes() -> int:
    """What this process has had read from disks."""
    return int(psutil.Process().io_counters().read_bytes)


@dataclass(frozen=True)
class Rate:
    """One epoch's reading."""

    images_per_second: float
    from_disk: float
    """Bytes from the disk for each byte of image."""


def measure(data: DataConfig, seed: int, num_threads: int) -> Rate:
    """Read all whole batches of an epoch."""
    index = open_index(data, "train", build=True, show_progress=False)
    shards_ahead = data.blocked_window if data.order == "blocked" else 0
    store = open_store(index, num_threads=num_threads, shards_ahead=shards_ahead)
    order = SampleOrder(len(index), BATCH, seed=seed, blocks=blocks_of(data, index))
    forget(Path(str(data.root)) / "train")
    before = disk_bytes()
    began = time.perf_counter()
    num_images = num_bytes = 0
    for step in range(order.steps_per_epoch):
        ids = order.sample_ids(step)
        num_bytes += sum(len(one) for one in store.read(ids))
        num_images += len(ids)
    seconds = time.perf_counter() - began
    return Rate(num_images / seconds, (disk_bytes() - before) / num_bytes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4, help="requests in flight")
    parser.add_argument("--window", type=int, default=4, help="data.blocked_window")
    parser.add_argument("--samples-per-shard", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder, packed = Path(name) / "folder", Path(name) / "packed"
        copy_images(args.images, folder, args.copies)
        options = ["--splits=train", f"--samples-per-shard={args.samples_per_shard}"]
        assert prepare(["folder", str(folder), f"--out={packed}", *options]) == 0
        cache = str(Path(name) / "cache")
        modes = {
            "folder": DataConfig(root=str(folder), cache_dir=cache),
            "shards": DataConfig(root=str(packed), cache_dir=cache),
            "blocked": DataConfig(
                root=str(packed), cache_dir=cache, order="blocked", blocked_window=args.window
            ),
        }
        rates: dict[str, list[Rate]] = {mode: [] for mode in modes}
        for number in range(args.rounds):
            for mode, data in modes.items():
                rates[mode].append(measure(data, number, args.threads))
    print(f"\n{args.threads} requests in flight, {args.rounds} rounds")
    print("| | images/s, median | lowest | highest | bytes from disk for each of an image |")
    print("|---|---:|---:|---:|---:|")
    for mode, of in rates.items():
        speed = [rate.images_per_second for rate in of]
        disk = statistics.median(rate.from_disk for rate in of)
        print(
            f"| {mode} | {statistics.median(speed):.0f} | {min(speed):.0f} | {max(speed):.0f} "
            f"| {disk:.2f} |"
        )


if __name__ == "__main__":
    main()
