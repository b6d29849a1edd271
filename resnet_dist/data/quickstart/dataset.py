"""The embedded data set: drawn shapes as real JPEG files in class folders.

Owns the files; the pictures are `resnet_dist.data.quickstart.render`'s. Promises that the folder is
there whole or not at all, however many processes ask for it and wherever one is killed, and that
every file is a pure function of (VERSION, split, index). Does not build the index: to the rest of
the package this is a folder like any other."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from resnet_dist.data.quickstart.render import CLASSES, SPLIT_SIZES, VERSION, draw
from resnet_dist.errors import UserError

_MAX_WORKERS = 8
_IMAGES_PER_WORKER = 500
"""Fewer are drawn sooner than another interpreter starts."""
_EXIT_OS_ERROR = 100
"""A worker that meets an OSError exits with this plus its errno (below 156 on Linux)."""


def write_image(root: Path, split: str, index: int) -> Path:
    """Write `<root>/<split>/<class>/<NNNN>.jpg` (the folder must be there); returns its path."""
    number = index // len(CLASSES)
    path = root / split / CLASSES[index % len(CLASSES)] / f"{number:04d}.jpg"
    # 75 to 95, by the number within the class: so no class has a quality of its own.
    draw(split, index).save(path, quality=75 + number * 8 % 21)
    return path


def _write_share(root: Path, sizes: dict[str, int], worker: int, workers: int) -> Iterator[Path]:
    """Write every `workers`-th image, beginning with number `worker`, as it is iterated."""
    for split, count in sizes.items():
        for index in range(worker, count, workers):
            yield write_image(root, split, index)


def _work(root: str, worker: str, workers: str, *counts: str) -> None:
    """Body of a worker process: one byte on standard output for each image written."""
    sizes = dict(zip(SPLIT_SIZES, map(int, counts), strict=True))
    try:
        for _ in _write_share(Path(root), sizes, int(worker), int(workers)):
            os.write(sys.stdout.fileno(), b".")
    except OSError as error:
        sys.exit(_EXIT_OS_ERROR + (error.errno or 0))


def _run_workers(root: Path, sizes: dict[str, int], workers: int) -> Iterator[int]:
    """Write all images in `workers` new processes; yields how many were written just now.

    Not a `multiprocessing` pool: its spawned children import the main module again, which here
    means torch and takes longer than the drawing; and a forked child of a killed parent would wait
    for ever, with our lock in its hands. These import only NumPy and Pillow, inherit no file but
    the pipe, and end by themselves.
    """
    source_root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (source_root, os.environ.get("PYTHONPATH"))))
    code = "import sys; from resnet_dist.data.quickstart.dataset import _work; _work(*sys.argv[1:])"
    counts = [str(sizes[split]) for split in SPLIT_SIZES]
    read_end, write_end = os.pipe()
    processes = []
    try:
        for worker in range(workers):
            command = [sys.executable, "-P", "-c", code, str(root), str(worker), str(workers)]
            processes.append(
                subprocess.Popen(
                    command + counts, stdout=write_end, env={**os.environ, "PYTHONPATH": path}
                )
            )
        os.close(write_end)
        write_end = -1
        while written := os.read(read_end, 4096):
            yield len(written)
        for process in processes:
            exit_code = process.wait()
            if exit_code > _EXIT_OS_ERROR:
                number = exit_code - _EXIT_OS_ERROR
                raise OSError(number, os.strerror(number), str(root))
            if exit_code != 0:
                raise RuntimeError(
                    f"a process that draws the embedded data set exited with {exit_code}"
                )
    finally:
        for process in processes:
            process.kill()
            process.wait()
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def write_all(
    root: Path,
    sizes: dict[str, int],
    *,
    num_workers: int | None = None,
    show_progress: bool = False,
) -> None:
    """Write the first `sizes[split]` images of each split below `root`, on all cores."""
    for split in sizes:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True, exist_ok=True)
    total = sum(sizes.values())
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, _MAX_WORKERS, total // _IMAGES_PER_WORKER)
    disable = None if show_progress else True  # None: no bar where there is no terminal.
    with tqdm(desc="drawing", total=total, unit="image", disable=disable) as bar:
        if num_workers > 1:
            for count in _run_workers(root, sizes, num_workers):
                bar.update(count)
        else:
            for _ in _write_share(root, sizes, 0, 1):
                bar.update()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(target: Path, show_progress: bool) -> None:
    """Write the data set beside `target` and rename it; the caller holds the lock."""
    pattern = f".{target.name}.unfinished-"
    for left_by_a_kill in target.parent.glob(f"{pattern}*"):
        shutil.rmtree(left_by_a_kill)
    # A name of its own: workers that outlive a killed parent cannot write into a later attempt.
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
        with _lock(cache_dir / f".{target.name}.lock"):
            if not target.is_dir():
                _make(target, show_progress)
    except OSError as error:
        raise UserError(
            f"data.cache_dir ({cache_dir}): the embedded data set cannot be written: "
            f"{error.strerror} ({error.filename or target}); {_remedy(error)}"
        ) from error
    return target
