"""One split: from its samples to shards, index columns and dataset.json.

Owns which sample goes where, the worker processes, what a second call finds of the first, and the
moment at which the split exists. See `resnet_dist.data.index.packed` for the layout.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_EXCEPTION,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_dist import rng
from resnet_dist.data.index.packed import MANIFEST, WORK_FOLDER, Manifest, read_manifest
from resnet_dist.errors import UserError, printable
from resnet_dist.prepare import shards
from resnet_dist.prepare.check import Options
from resnet_dist.prepare.commit import commit
from resnet_dist.prepare.progress import Progress
from resnet_dist.prepare.samples import Sample, Split
from resnet_dist.prepare.shards import Item, Policy, Record, Task
from resnet_dist.system import workers
from resnet_dist.system.files import locked

_SHUFFLE_SEED = 0  # shards do not depend on any run's seed
_BYTES_BESIDE = 3 * 512 + 256
"""Bytes beside each image: two tar headers, the label, half of the padding."""
_MOST_NAMED = 10
_counts: Any = None
"""In a worker: images and bytes done, shared by all."""


@dataclass(frozen=True)
class Packed:
    """What a call has done."""

    manifest: Manifest
    num_kept: int
    """Shards that an earlier call had made."""
    was_complete: bool
    seconds: float


def plan_shards(split: Split, folder: Path, options: Options, policy: Policy) -> list[Task]:
    """Which samples go into which shard: a permutation cut into pieces."""
    keys = _keys(split.samples)
    order = rng.permutation(_SHUFFLE_SEED, 0, len(split.samples), stream=rng.Stream.SHARDS)
    tasks: list[Task] = []
    for start in range(0, len(order), options.samples_per_shard):
        ids = order[start : start + options.samples_per_shard].tolist()
        items = [Item(i, keys[i], split.cls[split.samples[i].label], split.samples[i]) for i in ids]
        name = f"{split.name}-{len(tasks):05d}.tar"
        tasks.append(Task(folder, name, items, options, policy))
    return tasks


def _keys(samples: list[Sample]) -> list[str]:
    """Names without suffix. WebDataset takes what comes before the first dot for a sample's key
    and joins files of one key: further dots are replaced, and no key is given twice."""
    keys: list[str] = []
    taken: set[str] = set()
    label = -1
    for sample in samples:
        if sample.label != label:  # keys begin with the class: two classes cannot meet
            label, taken = sample.label, set()
        folder, _, name = sample.name.rpartition("/")
        key = base = f"{folder}/{name.rpartition('.')[0].replace('.', '_')}"
        number = 1
        while key in taken:
            number += 1
            key = f"{base}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


def pack_split(split: Split, out: Path, options: Options, policy: Policy) -> Packed:
    """Make `out/<split>`, or what is missing of it. Raises UserError."""
    began = time.monotonic()
    folder = out / split.name
    tasks = plan_shards(split, folder, options, policy)
    inputs = hashlib.sha256(
        "".join([*split.classes, *(t.inputs for t in tasks)]).encode(errors="surrogateescape")
    ).hexdigest()
    try:
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            if manifest.inputs != inputs:
                raise UserError(
                    f"--out ({folder}): holds a data set of other samples or options; give another "
                    f"folder or remove it"
                )
            shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
            return Packed(manifest, len(tasks), True, time.monotonic() - began)
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        with _locked(folder / WORK_FOLDER):
            _clear(folder, {task.name for task in tasks})
            _check_space(split, folder, options)
            records = _run(split.name, tasks)
            _report_bad(records, folder)
            _check_no_class_is_empty(split, records)
            manifest = commit(split, tasks, records, inputs)
            shutil.rmtree(folder / WORK_FOLDER)
    except BrokenExecutor:
        raise UserError(
            f"--out ({folder}): a worker process was killed (out of memory?); give the same "
            f"command again, on fewer cores (taskset) if memory is short: finished shards are kept"
        ) from None
    except OSError as error:
        raise UserError(
            f"--out ({folder}): cannot be written ({error.strerror or error}); make room or mend "
            f"its permissions and give the same command again: finished shards are kept"
        ) from error
    num_kept = sum(record.is_kept for record in records)
    return Packed(manifest, num_kept, False, time.monotonic() - began)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    try:
        with locked(work / "lock", wait=False):
            yield
    except BlockingIOError:
        raise UserError(
            f"--out ({work.parent}): another process is preparing it; wait for it to end"
        ) from None


def _clear(folder: Path, names: set[str]) -> None:
    """Remove what killed calls left behind, also shards of other samples."""
    for path in [*folder.glob(".*.tmp"), *(folder / WORK_FOLDER).glob(".*.tmp")]:
        path.unlink()
    for path in folder.glob("*.tar"):
        record = folder / WORK_FOLDER / f"{path.name}.json"
        if path.name not in names and not record.exists():
            raise UserError(
                f"--out ({folder}): holds {path.name}, which is none of its shards; give another "
                f"folder or remove the file"
            )
        if path.name not in names:
            path.unlink()
            record.unlink()


def _check_space(split: Split, folder: Path, options: Options) -> None:
    """Raise UserError unless there is room for the images as they are.

    How much shrunk ones will take is not known: a tenth is asked for.
    """
    needed = sum(sample.length + _BYTES_BESIDE for sample in split.samples)
    if options.max_side is not None or options.short_side is not None:
        needed //= 10
    there = sum(path.stat().st_size for path in folder.glob("*.tar"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise UserError(
            f"--out ({folder}): {(needed - there) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB "
            f"are free; make room, give a folder on another disk, or shrink with --short-side"
        )


def _run(name: str, tasks: list[Task]) -> list[Record]:
    """Make all shards in parallel, with progress. Raises OSError, BrokenExecutor."""
    context = workers.context()
    counts = context.Array("q", 2)
    total = sum(len(task.items) for task in tasks)
    num_processes = max(1, min(len(os.sched_getaffinity(0)), len(tasks)))
    with (
        Progress(name, total) as progress,
        ProcessPoolExecutor(
            num_processes,
            mp_context=context,
            initializer=_start_worker,
            initargs=(os.getpid(), counts),
        ) as pool,
    ):
        futures = [pool.submit(_make, task) for task in tasks]
        waiting: set[Future[Record]] = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                progress.reach(*counts[:])
                for future in done:
                    future.result()
        except BaseException:  # a full disk, Ctrl-C: do not continue with the other shards
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _start_worker(parent_pid: int, counts: Any) -> None:
    global _counts
    workers.isolate(parent_pid)
    torch.set_num_threads(1)  # one image per process
    _counts = counts


def _make(task: Task) -> Record:
    return shards.make_shard(task, _count)


def _count(images: int, num_bytes: int) -> None:
    with _counts.get_lock():
        _counts[0] += images
        _counts[1] += num_bytes


def _report_bad(records: list[Record], folder: Path) -> None:
    bad = {
        name: why for record in records if not record.is_made for name, why in record.bad.items()
    }
    if not bad:
        return
    path = folder / WORK_FOLDER / "bad.txt"
    lines = [printable(f"{name}: {why}") for name, why in sorted(bad.items())]
    path.write_text("\n".join(lines) + "\n")
    more = f" and {len(lines) - _MOST_NAMED} more" if len(lines) > _MOST_NAMED else ""
    raise UserError(
        f"{folder.name}: {len(lines)} of {sum(len(r.ids) + len(r.bad) for r in records)} images "
        f"cannot be used: {'; '.join(lines[:_MOST_NAMED])}{more} (all are named in {path}). "
        f"Replace them and give the same command again (finished shards are kept), or leave them "
        f"out with --skip-bad, or keep those that are only damaged inside, as other pipelines do, "
        f"with --keep-damaged"
    )


def _check_no_class_is_empty(split: Split, records: list[Record]) -> None:
    """Raise UserError for a class that has lost all its images, as for an empty class folder."""
    kept = {split.samples[i].label for record in records for i in record.ids}
    empty = [name for label, name in enumerate(split.classes) if label not in kept]
    if empty:
        raise UserError(
            f"{split.name}: no image of {len(empty)} class(es) can be used "
            f"({', '.join(map(printable, empty[:_MOST_NAMED]))}); replace the images or "
            f"remove the classes, and give the same command again (finished shards are kept)"
        )
