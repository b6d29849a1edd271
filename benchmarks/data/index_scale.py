"""What an index of ImageNet's size costs: time until the first batch, and memory.

    python benchmarks/data/index_scale.py [--samples 1281167] [--rounds 7] [--ranks 8] [--readers 2]

The index is made up: a packed split (columns and dataset.json) without shards. A rank opens it and
makes the order of the epoch; a reader of the torch loader opens it and is sent samples.

1. Time until the first batch's samples and crops are known, in a fresh process with everything
   imported, and what a change of the epoch costs the thread that cuts batches.
2. Memory of one process, then of all ranks and readers of a node at once, after they have gone
   through the whole epoch. "Mapped" is the index, which is page cache: "node" counts a page once,
   however many processes map it. "Private" is what a process has more of its own than before it
   opened the index; a rank holds the orders of two epochs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from resnet_dist import rng
from resnet_dist.config import AugmentConfig, DataConfig
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.index.packed import COLUMNS_FOLDER, DTYPES, MANIFEST, Manifest, ShardFile
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.specs import TrainSpecs, train_slice
from resnet_dist.system import workers

SEED = 5
BATCH = 256
CLASSES = 1000
IN_SHARD = 1024
MB = 1e6


def make_up(root: Path, num_samples: int) -> None:
    """A packed split of so many samples, with names as long as ImageNet's."""
    folder = root / "train"
    (folder / COLUMNS_FOLDER).mkdir(parents=True)
    generator = np.random.default_rng(0)
    classes = [f"n{10_000_000 + i}" for i in range(CLASSES)]
    labels = np.arange(num_samples) * CLASSES // num_samples
    place = rng.permutation(0, 0, num_samples)
    numbers = generator.integers(0, 10**5, num_samples)
    names = np.char.add(
        np.array([f"{name}/{name}_" for name in classes], dtype="S19")[labels],
        np.char.add(np.char.zfill(numbers.astype("S5"), 5), b".JPEG"),
    )
    columns = {
        "labels": labels,
        "heights": generator.integers(200, 600, num_samples),
        "widths": generator.integers(200, 600, num_samples),
        "lengths": generator.integers(10_000, 200_000, num_samples),
        "path_bytes": np.ascontiguousarray(names).view(np.uint8),
        "path_offsets": np.arange(num_samples + 1) * names.itemsize,
        "shards": place // IN_SHARD,
        "offsets": place % IN_SHARD * 110_000,
    }
    for name, dtype in DTYPES.items():
        np.save(folder / COLUMNS_FOLDER / f"{name}.npy", columns[name].astype(dtype))
    shards = [
        ShardFile(f"train-{i:05d}.tar", 1 << 27, "0" * 64, IN_SHARD)
        for i in range(-(-num_samples // IN_SHARD))
    ]
    manifest = Manifest("train", classes, num_samples, "made up", shards, {}, "made up")
    (folder / MANIFEST).write_text(manifest.to_json())


@dataclass(frozen=True)
class Memory:
    """Memory of one process, bytes."""

    private: int
    """Anonymous memory and pages that it has written to."""
    mapped: int
    """Resident pages of the index."""
    share: int
    """These, divided by the number of processes that map each page."""


def read_memory(folder: Path) -> Memory:
    """Memory of this process; `folder` holds the index."""
    private = mapped = share = 0
    for mapping in psutil.Process().memory_maps(grouped=False):
        if str(folder) in mapping.path:
            mapped += mapping.rss
            share += mapping.pss
        else:  # of a new file also its cached pages count as dirty
            private += mapping.private_dirty
    return Memory(private, mapped, share)


@dataclass(frozen=True)
class Task:
    """What a process does."""

    folder: Path
    step: int
    rank: int
    num_ranks: int
    is_reader: bool
    whole_epoch: bool


def run_process(task: Task, barrier: Any, sender: Connection) -> None:
    """A rank or a reader: (seconds until the first batch, memory before, memory after)."""
    data = DataConfig(root=str(task.folder), cache_dir=str(task.folder / "cache"))
    before = read_memory(task.folder)
    barrier.wait()
    began = time.perf_counter()
    index = open_index(data, "train", build=False, show_progress=False)
    if task.is_reader:  # is sent the samples
        draws = np.random.default_rng(task.rank)
        batches = (draws.integers(0, len(index), BATCH) for _ in range(len(index) // BATCH))
        seconds = 0.0
    else:
        order = SampleOrder(len(index), BATCH, seed=SEED)
        specs = TrainSpecs(data, AugmentConfig(), index, SEED, BATCH)
        split = BatchSplit(BATCH, task.num_ranks, 1)
        first = train_slice(
            order, split, rank=task.rank, step=task.step, micro_batch=0, is_mixing=False
        )
        assert len(specs(first)) == BATCH // task.num_ranks
        seconds = time.perf_counter() - began
        order.prepare(1)
        batches = (order.sample_ids(step) for step in range(order.steps_per_epoch))
    if task.whole_epoch:
        read_all(index, batches)
    barrier.wait()  # all are alive, and have touched what they will
    after = read_memory(task.folder)
    barrier.wait()
    sender.send((seconds, before, after))


def read_all(index: Index, batches: Iterator[Any]) -> None:
    """Look up every column of every sample."""
    assert index.shards is not None
    columns = (index.labels, index.heights, index.widths, index.lengths)
    for ids in batches:
        for column in (*columns, index.shards.numbers, index.shards.offsets):
            column[ids].sum()


def run_node(tasks: list[Task]) -> list[tuple[float, Memory, Memory]]:
    """All processes at once."""
    context = workers.context()
    barrier = context.Barrier(len(tasks))
    running = []
    for task in tasks:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_process, args=(task, barrier, sender))
        process.start()
        running.append((process, receiver))
    results = [receiver.recv() for _, receiver in running]
    for process, _ in running:
        process.join()
    return results


def print_times(folder: Path, num_samples: int, rounds: int) -> None:
    """Part 1."""
    print("\n| | ms, median | lowest | highest |\n|---|---:|---:|---:|")
    middle = num_samples // BATCH // 2
    for name, step in (("first batch of a run", 0), ("first batch, mid-epoch", middle)):
        tasks = [Task(folder, step, 0, 1, False, False)]
        times = [run_node(tasks)[0][0] for _ in range(rounds)]
        print(f"| {name} | {row(times)} |")
    changes: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, seconds in epoch_change(num_samples).items():
            changes.setdefault(name, []).append(seconds)
    for name, times in changes.items():
        print(f"| {name} | {row(times)} |")


def row(times: list[float]) -> str:
    """Median, lowest, highest, in milliseconds."""
    figures = (statistics.median(times), min(times), max(times))
    return " | ".join(f"{1e3 * seconds:.2f}" for seconds in figures)


def epoch_change(num_samples: int) -> dict[str, float]:
    """Seconds that the thread that cuts batches waits."""
    order = SampleOrder(num_samples, BATCH, seed=SEED)
    order.sample_ids(0)
    longest, following = 0.0, order.prepare(1)
    while not following.done():  # what the next epoch costs this one
        began = time.perf_counter()
        order.sample_ids(1)
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.0005)
    waits = {"longest wait for a batch while the next epoch is prepared": longest}
    for name, epoch in (("first batch of a prepared epoch", 1), ("of one that is not", 2)):
        began = time.perf_counter()
        order.sample_ids(epoch * order.steps_per_epoch)
        waits[name] = time.perf_counter() - began
    return waits


def print_memory(folder: Path, ranks: int, readers: int, rounds: int) -> None:
    """Part 2."""
    print(
        "\n| processes | private MB, median rank | median reader | all | mapped MB a process "
        "| node |\n|---|---:|---:|---:|---:|---:|"
    )
    for num_ranks, num_readers in ((1, 0), (ranks, ranks * readers)):
        own: dict[bool, list[float]] = {False: [], True: []}
        whole, mapped, node = [], [], []
        for _ in range(rounds):
            tasks = [
                Task(folder, 0, i % num_ranks, num_ranks, i >= num_ranks, True)
                for i in range(num_ranks + num_readers)
            ]
            results = run_node(tasks)
            growth = [(after.private - before.private) / MB for _, before, after in results]
            for task, grown in zip(tasks, growth, strict=True):
                own[task.is_reader].append(grown)
            whole.append(sum(growth))
            mapped.append(max(after.mapped for _, _, after in results) / MB)
            node.append(sum(after.share for _, _, after in results) / MB)
        columns = [
            f"{statistics.median(values):.1f}" if values else "-"
            for values in (own[False], own[True], whole, mapped, node)
        ]
        print(f"| {num_ranks} ranks, {num_readers} readers | {' | '.join(columns)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--readers", type=int, default=2, help="of each rank")
    args = parser.parse_args()
    multiprocessing.set_start_method("forkserver")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_up(folder, args.samples)
        num_bytes = sum(path.stat().st_size for path in (folder / "train/index").iterdir())
        print(
            f"Python {platform.python_version()}, NumPy {np.__version__}, Linux "
            f"{platform.release()}, {len(os.sched_getaffinity(0))} cores; {args.samples} samples, "
            f"columns of {num_bytes / MB:.1f} MB, {args.rounds} rounds"
        )
        print_times(folder, args.samples, args.rounds)
        print_memory(folder, args.ranks, args.readers, args.rounds)


if __name__ == "__main__":
    main()
