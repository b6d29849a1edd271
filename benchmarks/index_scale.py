"""What an index of ImageNet's size costs: time until the first batch, and memory.

    python benchmarks/index_scale.py [--samples 1281167] [--rounds 7] [--ranks 8] [--readers 2]

The index is made up: a packed split (columns and dataset.json) without shards. A process opens it
and asks for a batch of the first epoch, as every rank and every reader of the torch loader does.

1. Time until the first batch's samples and crops are known, in a fresh process with everything
   imported: the first process of a node, which makes the epoch's order, and one that finds it.
2. Memory of one process, then of all ranks and readers of a node at once, after they have gone
   through the whole epoch. "Mapped" is the index and the order, which is page cache: "node" counts
   a page once, however many processes map it. "Private" is what a process has more of its own
   than before it opened the index.
3. The same when each process keeps the order for itself, as it was before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from resnet_dist import rng
from resnet_dist.config import DataConfig
from resnet_dist.data import order, shared_order
from resnet_dist.data.index.packed import COLUMNS_FOLDER, DTYPES, MANIFEST, Manifest, ShardFile
from resnet_dist.data.loaders.build import open_index
from resnet_dist.data.micro_batches import BatchSplit
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
    draws = np.random.default_rng(0)
    classes = [f"n{10_000_000 + i}" for i in range(CLASSES)]
    labels = np.arange(num_samples) * CLASSES // num_samples
    place = rng.permutation(0, 0, num_samples)
    names = np.char.add(
        np.array([f"{name}/{name}_" for name in classes], dtype="S19")[labels],
        np.char.add(np.char.zfill(draws.integers(0, 10**5, num_samples).astype("S5"), 5), b".JPEG"),
    )
    columns = {
        "labels": labels,
        "heights": draws.integers(200, 600, num_samples),
        "widths": draws.integers(200, 600, num_samples),
        "lengths": draws.integers(10_000, 200_000, num_samples),
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
    """Of one process, bytes."""

    private: int
    """Anonymous memory and pages that it has written to."""
    mapped: int
    """Resident pages of the index and the order."""
    share: int
    """Of these, divided by the number of processes that map each page."""


def read_memory(folder: Path) -> Memory:
    """Of this process; `folder` holds the index and the order."""
    private = mapped = share = 0
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if " " in key:  # the head of a mapping
            is_ours = str(folder) in line
        elif key == "Private_Dirty" and not is_ours:  # of a new file also its cached pages count
            private += 1024 * int(rest.split()[0])
        if is_ours and key == "Rss":
            mapped += 1024 * int(rest.split()[0])
        elif is_ours and key == "Pss":
            share += 1024 * int(rest.split()[0])
    return Memory(private, mapped, share)


@dataclass(frozen=True)
class Task:
    """What a process does."""

    folder: Path
    step: int
    rank: int
    num_ranks: int
    whole_epoch: bool
    is_shared: bool


def run_process(task: Task, barrier: Any, sender: Connection) -> None:
    """A rank or a reader: (seconds until the first batch, memory before, memory after)."""
    tempfile.tempdir = str(task.folder)
    if not task.is_shared:
        shared_order._FEWEST_SHARED = 2**62
    data = DataConfig(root=str(task.folder), cache_dir=str(task.folder / "cache"))
    batch_split = BatchSplit(BATCH, task.num_ranks, 1)
    before = read_memory(task.folder)
    barrier.wait()
    began = time.perf_counter()
    index = open_index(data, "train", build=False, show_progress=False)
    job = order.train_spec(
        data,
        index,
        batch_split=batch_split,
        seed=SEED,
        rank=task.rank,
        step=task.step,
        micro_batch=0,
    )
    seconds = time.perf_counter() - began
    assert len(job) == BATCH // task.num_ranks
    if task.whole_epoch:
        for step in range(len(index) // BATCH):
            ids = order.sample_ids_of_step(SEED, step, len(index), BATCH)
            for column in (index.labels, index.heights, index.widths, index.lengths):
                column[ids].sum()
            assert index.shards is not None
            (index.shards.numbers[ids].sum(), index.shards.offsets[ids].sum())
    barrier.wait()  # all are alive, and have touched what they will
    after = read_memory(task.folder)
    barrier.wait()
    sender.send((seconds, before, after))


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


def remove_orders(folder: Path) -> None:
    """As on a node that has not run this epoch yet."""
    for path in folder.glob("resnet_dist-*/order-*"):
        path.unlink()


def print_times(folder: Path, num_samples: int, rounds: int) -> None:
    """Part 1."""
    print("\n| first batch | s, median | lowest | highest |\n|---|---:|---:|---:|")
    middle = num_samples // BATCH // 2
    for name, step, is_first in (
        ("the node's first process, step 0", 0, True),
        ("the node's first process, mid-epoch", middle, True),
        ("any other, mid-epoch", middle, False),
    ):
        times = []
        for _ in range(rounds):
            if is_first:
                remove_orders(folder)
            ((seconds, _, _),) = run_node([Task(folder, step, 0, 1, False, True)])
            times.append(seconds)
        print(f"| {name} | {statistics.median(times):.3f} | {min(times):.3f} | {max(times):.3f} |")


def print_memory(folder: Path, ranks: int, readers: int, rounds: int) -> None:
    """Parts 2 and 3."""
    print(
        "\n| processes | order | private MB, median process | highest | all | mapped MB a process "
        "| node |\n|---|---|---:|---:|---:|---:|---:|"
    )
    for num_processes in (1, ranks * (1 + readers)):
        for is_shared in (True, False):
            remove_orders(folder)
            own, highest, whole, mapped, node = [], [], [], [], []
            for _ in range(rounds):
                tasks = [
                    Task(folder, 0, i % ranks, ranks, True, is_shared) for i in range(num_processes)
                ]
                results = run_node(tasks)
                growth = [(after.private - before.private) / MB for _, before, after in results]
                own.append(statistics.median(growth))
                highest.append(max(growth))
                whole.append(sum(growth))
                mapped.append(max(after.mapped for _, _, after in results) / MB)
                node.append(sum(after.share for _, _, after in results) / MB)
            columns = [
                f"{statistics.median(values):.1f}" for values in (own, highest, whole, mapped, node)
            ]
            kind = "in a file" if is_shared else "each its own"
            print(f"| {num_processes} | {kind} | {' | '.join(columns)} |")


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
