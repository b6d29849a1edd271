"""The backend on torch's DataLoader and torchvision's decoder.

Owns its reader processes: each makes whole micro-batches, ends with the iterator and dies with the
trainer. Does not choose samples or augmentations: readers are sent a `BatchSlice`, and make its
spec themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from resnet_dist.data.augment import pixel_ops
from resnet_dist.data.augment.crop import apply_offsets_and_flips
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Batch, BatchSlice, BatchSpec, Done
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.hand_over import one_ahead
from resnet_dist.data.read.decode import decode_rgb
from resnet_dist.data.read.store import Store, open_store
from resnet_dist.data.specs import Specs
from resnet_dist.errors import LoaderError, UserError
from resnet_dist.system import workers

_MOST_BEYOND_THE_CROP = 16
"""How many times more pixels than the crop takes are resized with it."""


@dataclass(frozen=True)
class HostBatch:
    """A batch as a reader hands it to the trainer."""

    spec: BatchSpec
    images: torch.Tensor
    """`[n, size, size, 3]` uint8."""
    done: Done

    def pin_memory(self) -> HostBatch:
        """Called by the DataLoader's pinning thread."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way to the trainer: raised there, without a reader's traceback."""

    message: str


class _MicroBatches(Dataset[HostBatch | _Failure]):
    """What a reader does: from a slice to a batch on the host."""

    def __init__(
        self, index: Index, store: Store, specs: Specs, *, is_shared: bool, goes_to: Done
    ) -> None:
        """`goes_to`: how much is done here. `is_shared`: the images lie in shared memory."""
        self._index = index
        self._store = store
        self._specs = specs
        self._is_shared = is_shared
        self._goes_to = goes_to

    def __getitem__(self, item: BatchSlice) -> HostBatch | _Failure:
        try:
            spec = self._specs(item)
            images = torch.empty((len(spec), spec.size, spec.size, 3), dtype=torch.uint8)
            if self._is_shared:  # written in place: no copy on the way to the trainer
                images.share_memory_()  # type: ignore[no-untyped-call]
            mode = self._specs.data.interpolation
            for row, encoded in enumerate(self._store.read(spec.sample_ids)):
                image = decode_rgb(encoded, self._index, int(spec.sample_ids[row]))
                images[row] = crop_and_flip(image, spec, row, mode=mode)
        except UserError as error:
            return _Failure(str(error))
        done = Done.CROPPED if spec.crop_offsets is not None else Done.FLIPPED
        if self._goes_to < Done.AUGMENTED or spec.operations is None:
            return HostBatch(spec, images, done)
        if spec.crop_offsets is not None:
            images.copy_(
                apply_offsets_and_flips(images, spec.crop_offsets, spec.flips, is_flipped=False)
            )
        pixel_ops.apply_each(images, spec.operations)
        return HostBatch(spec, images, Done.AUGMENTED)


def crop_and_flip(image: torch.Tensor, spec: BatchSpec, row: int, *, mode: str) -> torch.Tensor:
    """Crop box, antialiased resize, crop, and flip unless an offset comes first: `[3, H, W]` to
    `[size, size, 3]` uint8."""
    top, left, height, width = spec.crop_boxes[row].tolist()
    resized_height, resized_width = spec.resized[row].tolist()
    image = image[:, top : top + height, left : left + width]
    if resized_height * resized_width > _MOST_BEYOND_THE_CROP * spec.size**2:
        image = _resize_window(image, spec, row, mode=mode)
        return image.flip(1) if spec.flips[row] and spec.crop_offsets is None else image
    # Packed, or the resize would not take it for channels-last and return it transposed: slower.
    image = image[None].contiguous(memory_format=torch.channels_last)
    if (height, width) != (resized_height, resized_width):
        # On uint8 this is the routine whose rounding is Pillow's, as in the published pipelines.
        size = (resized_height, resized_width)
        image = F.interpolate(image, size, mode=mode, antialias=True)
    top, left = spec.crops[row].tolist()
    image = image[0, :, top : top + spec.size, left : left + spec.size]
    if spec.flips[row] and spec.crop_offsets is None:
        image = image.flip(2)
    return image.permute(1, 2, 0)


def _resize_window(image: torch.Tensor, spec: BatchSpec, row: int, *, mode: str) -> torch.Tensor:
    """Only the crop of what the resize would give, `[size, size, 3]` uint8: the same pixels up
    to one level, where the whole (768,000 x 256 of a 3000 x 1 image) would take all memory."""
    scale = image.shape[1] / spec.resized[row, 0], image.shape[2] / spec.resized[row, 1]
    top, left = (float(at) * by for at, by in zip(spec.crops[row], scale, strict=True))
    box = (left, top, left + spec.size * scale[1], top + spec.size * scale[0])
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[mode]
    whole = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    window = whole.resize((spec.size, spec.size), method, box=box)
    return torch.from_numpy(np.array(window))


def _reader_ended(error: RuntimeError) -> LoaderError:
    return LoaderError(
        f"data.num_workers: a process that reads samples has ended ({str(error).splitlines()[0]}; "
        f"/dev/shm has {_free_shared_memory() >> 20} MiB free); where memory is short lower "
        f"data.num_workers or data.prefetch_batches; a restart resumes from the last checkpoint"
    )


def _free_shared_memory() -> int:
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(trainer_pid: int, _worker_id: int) -> None:
    workers.isolate(trainer_pid)


class TorchBackend:
    """Runs slices through reader processes and finishes their batches on the device."""

    def __init__(
        self, index: Index, specs: Specs, *, most: int, device: torch.device, num_workers: int
    ) -> None:
        """Batches have `most` samples at most. Raises UserError if those in flight do not fit into
        shared memory."""
        self._index = index
        self._specs = specs
        self._device = device
        self._num_workers = num_workers
        self._stage = DeviceStage(specs.data, device)
        self._check_shared_memory(most)

    def batches(self, slices: Iterable[BatchSlice]) -> Generator[Batch, None, None]:
        """The batches of the slices, in their order."""
        with (
            contextlib.closing(self.read(slices)) as results,
            contextlib.closing(one_ahead(results, self._finish, self._device)) as batches,
        ):
            yield from batches

    def read(self, slices: Iterable[BatchSlice]) -> Generator[HostBatch, None, None]:
        """What the readers make of the slices, in order. Closing the generator ends them.

        Raises UserError, naming the file, for one that is damaged, changed or gone.
        """
        results = iter(self._data_loader(slices))
        try:
            while True:
                try:
                    result = next(results)
                except StopIteration:
                    return
                except RuntimeError as error:  # torch's, of a reader that was killed
                    raise _reader_ended(error) from error
                if isinstance(result, _Failure):
                    raise UserError(result.message)
                yield result
        finally:
            if self._num_workers:
                results._shutdown_workers()  # type: ignore[attr-defined]  # now, not when a traceback lets go of it

    def _data_loader(self, slices: Iterable[BatchSlice]) -> DataLoader[HostBatch | _Failure]:
        data = self._specs.data
        dataset = _MicroBatches(
            self._index,
            open_store(self._index, data, shards_ahead=self._specs.shards_ahead),
            self._specs,
            is_shared=self._num_workers > 0,
            # Readers are many; a GPU does it faster.
            goes_to=Done.AUGMENTED if self._device.type == "cpu" else Done.FLIPPED,
        )
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=slices,  # iterated here, in the trainer
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            prefetch_factor=data.prefetch_batches if self._num_workers else None,
            worker_init_fn=partial(_start_worker, os.getpid()),
            multiprocessing_context=workers.context() if self._num_workers else None,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else each iterator draws from the global state
        )

    def _finish(self, result: HostBatch) -> Batch:
        return self._stage(result.images, result.spec, result.done)

    def _check_shared_memory(self, most: int) -> None:
        """A bus error would end the readers later. All ranks of the node share /dev/shm; their
        number is not known here."""
        size, data = self._specs.largest_size, self._specs.data
        batches = self._num_workers * data.prefetch_batches + 1
        needed = batches * most * size * size * 3 if self._num_workers else 0
        free = _free_shared_memory()
        if needed > free:
            raise UserError(
                f"data.num_workers ({self._num_workers}): the batches in flight need "
                f"{needed >> 20} MiB of /dev/shm, which has {free >> 20} MiB free; enlarge it "
                f"(docker run --shm-size), or lower data.num_workers or data.prefetch_batches"
            )
