"""From paths to batches of images: found, read, decoded and cropped in reader processes, in order.

Nothing is known about the images before, and nothing is kept: 100,000 files take no more memory
than a few batches.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resnet_dist.config import DataConfig
from resnet_dist.data.augment.crop import centre_crops, whole_images
from resnet_dist.data.batch import BatchSpec
from resnet_dist.data.index.scan import IMAGE_SUFFIXES
from resnet_dist.data.loaders.torch_backend import crop_and_flip
from resnet_dist.data.read.decode import decode_checked
from resnet_dist.errors import UserError
from resnet_dist.system import workers


@dataclass(frozen=True)
class Images:
    """A batch of files."""

    names: list[str]
    """Those that are images, `[n]`."""
    pixels: torch.Tensor
    """`[n, size, size, 3]` uint8."""
    bad: list[tuple[str, str]]
    """Files that are none, and why."""


@dataclass
class Found:
    """Counts what a search passes by."""

    left_out: Counter[str] = field(default_factory=Counter)


def find_images(paths: Sequence[str], found: Found) -> Iterator[str]:
    """The files that are named, and the images below the folders that are, in order of their names.

    Raises UserError for a path that is not there.
    """
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 (a str: the name stays as it was given)
            raise UserError(f"IMAGES ({path}): no such file or folder")
        yield from _below(path, found) if Path(path).is_dir() else [path]


def _below(folder: str, found: Found) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != ".":
                yield os.path.join(root, name)  # noqa: PTH118 (100,000 of them)
            else:
                found.left_out[os.path.splitext(name)[1].lower() or "without a suffix"] += 1  # noqa: PTH122


class _Reader(Dataset[Images]):
    """What a reader does with the paths of a batch."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data

    def __getitem__(self, paths: list[str]) -> Images:
        size = self._data.eval_size
        images = torch.empty((len(paths), size, size, 3), dtype=torch.uint8)
        if get_worker_info() is not None:  # written in place: no copy on the way out
            images.share_memory_()  # type: ignore[no-untyped-call]
        names: list[str] = []
        bad: list[tuple[str, str]] = []
        for path in paths:
            try:
                images[len(names)] = self._read(path)
            except OSError as error:
                bad.append((path, error.strerror or str(error)))
            except (RuntimeError, ValueError) as error:
                bad.append((path, str(error)))
            else:
                names.append(path)
        return Images(names, images[: len(names)], bad)

    def _read(self, path: str) -> torch.Tensor:
        with open(path, "rb") as file:  # noqa: PTH123 (a str, not a Path: speed)
            encoded = np.fromfile(file, dtype=np.uint8)
        image = decode_checked(encoded)
        sizes = np.array([image.shape[1:]], dtype=np.int32)
        resized, crops = centre_crops(sizes, self._data.eval_resize_size, self._data.eval_size)
        spec = BatchSpec(
            step=0,
            sample_ids=np.zeros(1, np.int64),
            labels=np.zeros(1, np.int64),
            crop_boxes=whole_images(sizes),
            resized=resized,
            crops=crops,
            crop_offsets=None,
            flips=np.zeros(1, np.bool_),
            size=self._data.eval_size,
        )
        return crop_and_flip(image, spec, 0, mode=self._data.interpolation)


def read_batches(
    paths: Iterable[str], data: DataConfig, *, batch_size: int, num_workers: int
) -> Generator[Images, None, None]:
    """The images of the paths in their order, `batch_size` files at a time."""
    loader = DataLoader(
        _Reader(data),
        batch_size=None,
        sampler=_chunks(paths, batch_size),
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
        worker_init_fn=partial(_start_worker, os.getpid()),
        multiprocessing_context=workers.context() if num_workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        yield from batches
    except RuntimeError as error:  # torch's, of a reader that was killed
        raise UserError(
            f"a process that reads images has ended ({str(error).splitlines()[0]}); where memory "
            f"is short lower --batch-size or data.num_workers"
        ) from error
    finally:
        if num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def _chunks(paths: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for path in paths:
        chunk.append(path)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(parent: int, _worker_id: int) -> None:
    workers.isolate(parent)
