"""The embedded data set: rendered shapes as real JPEG files in class folders.

Owns the files; the pictures are `resnet_dist.data.quickstart.render`'s. Promises that the folder is
there whole or not at all, however many processes ask for it and wherever one is killed, and that
every file is a pure function of (VERSION, split, index). Does not build the index: to the rest of
the package this is a folder like any other."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path

from tqdm import tqdm

from resnet_dist.data.quickstart.render import CLASSES, SPLIT_SIZES, VERSION, render
from resnet_dist.errors import UserError
from resnet_dist.system import workers
from resnet_dist.system.files import locked

_MAX_PROCESSES = 8
_IMAGES_PER_PROCESS = 500
"""Fewer are rendered sooner than another process starts."""
_IMAGES_PER_TASK = 50


def write_image(root: Path, split: str, index: int) -> Path:
    """Write `<root>/<split>/<class>/<NNNN>.jpg` (the folder must be there); returns its path."""
    number = index // len(CLASSES)
    path = root / split / CLASSES[index % len(CLASSES)] / f"{number:04d}.jpg"
    # 75 to 95, by the number within the class: so no class has a quality of its own.
    render(split, index).save(path, quality=75 + number * 8 % 21)
    return path


def _write_some(root: Path, split: str, indexes: range) -> int:
    for index in indexes:
        write_image(root, split, index)
    return len(indexes)


def _write_in_processes(
    root: Path, tasks: list[tuple[str, range]], num_processes: int
) -> Iterator[int]:
    """Do the tasks in other processes; yields how many images were written just now. Raises what a
    process raises, once those at work have ended."""
    with workers.process_pool(num_processes) as pool:
        futures = [pool.submit(_write_some, root, split, indexes) for split, indexes in tasks]
        try:
            for done in as_completed(futures):
                yield done.result()
        finally:  # also on Ctrl-C and a full disk: nothing more is begun
            pool.shutdown(cancel_futures=True)


def write_all(
    root: Path,
    sizes: dict[str, int],
    *,
    num_processes: int | None = None,
    show_progress: bool = False,
) -> None:
    """Write the first `sizes[split]` images of each split below `root`, on all cores."""
    for split in sizes:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True, exist_ok=True)
    tasks = [
        (split, range(start, min(start + _IMAGES_PER_TASK, count)))
        for split, count in sizes.items()
        for start in range(0, count, _IMAGES_PER_TASK)
    ]
    total = sum(sizes.values())
    if num_processes is None:
        num_processes = min(os.cpu_count() or 1, _MAX_PROCESSES, total // _IMAGES_PER_PROCESS)
    disable = None if show_progress else True  # None: no bar where there is no terminal.
    with tqdm(desc="rendering", total=total, unit="image", disable=disable) as bar:
        if num_processes > 1:
            for count in _write_in_processes(root, tasks, num_processes):
                bar.update(count)
        else:
            for split, indexes in tasks:
                bar.update(_write_some(root, split, indexes))


def _make(target: Path, show_progress: bool) -> None:
    """Write the data set beside `target` and rename it; the caller holds the lock."""
    pattern = f".{target.name}.unfinished-"
    for left_by_a_kill in target.parent.glob(f"{pattern}*"):
        shutil.rmtree(left_by_a_kill)
    # A name of its own: what outlives a killed parent cannot write into a later attempt.
    unfinished = target.parent / f"{pattern}{secrets.token_hex(4)}"
    try:
        write_all(unfinished, SPLIT_SIZES, show_progress=show_progress)
        # A kill before this line leaves a folder that the next attempt removes; after it, all.
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free 30 MB there, or set data.cache_dir to a folder on another disk"
    return "set data.cache_dir to a folder that you may write"


def ensure_shapes(cache_dir: Path, *, show_progress: bool = False) -> Path:
    """Make `<cache_dir>/shapes-v<VERSION>` unless it is there, and return it.

    Any number of processes may call it at the same time: one makes it, the others wait. Raises
    UserError where the folder cannot be written or the disk is full.
    """
    target = cache_dir / f"shapes-v{VERSION}"
    if target.is_dir():
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(cache_dir / f".{target.name}.lock"):
            if not target.is_dir():
                _make(target, show_progress)
    except OSError as error:
        raise UserError(
            f"data.cache_dir ({cache_dir}): the embedded data set cannot be written: "
            f"{error.strerror} ({error.filename or target}); {_remedy(error)}"
        ) from error
    return target
