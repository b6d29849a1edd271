"""The loader on torch's DataLoader and torchvision's decoder.

Owns its reader processes: each makes whole micro-batches, ends with the iterator and dies with the
trainer. Does not choose samples or augmentations: see `resnet_dist.data.order`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from resnet_dist.config import DataConfig
from resnet_dist.data import order
from resnet_dist.data.augment import pixel_ops
from resnet_dist.data.augment.device_stage import DeviceStage, offset_and_flip, one_ahead
from resnet_dist.data.batch import Batch, BatchSpec
from resnet_dist.data.blocked_order import shards_ahead
from resnet_dist.data.index.index import Index
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read.decode import decode_rgb
from resnet_dist.data.read.store import Store, open_store
from resnet_dist.errors import UserError
from resnet_dist.system import workers

_DECODED_TOGETHER = 256
"""Images of a part of `decode_all`."""


@dataclass(frozen=True)
class _HostBatch:
    spec: BatchSpec
    images: torch.Tensor
    """`[n, size, size, 3]` uint8, flipped unless the spec has crop_offsets (which come first)."""
    is_augmented: bool
    """Whether all that comes before the normalisation is done."""

    def pin_memory(self) -> _HostBatch:
        """Called by the DataLoader's pinning thread."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way to the trainer: raised there, without a reader's traceback."""

    message: str


class _MicroBatches(Dataset[_HostBatch | _Failure]):
    """Work items, each a micro-batch, by number."""

    def __init__(
        self,
        make_spec: Callable[[int], BatchSpec],
        index: Index,
        store: Store,
        *,
        mode: str,
        shared: bool,
        augments: bool,
    ) -> None:
        """`augments`: do here what comes between crop and normalisation, if it is much."""
        self._make_job = make_spec
        self._index = index
        self._store = store
        self._mode = mode
        self._shared = shared
        self._augments = augments

    def __getitem__(self, item: int) -> _HostBatch | _Failure:
        try:
            spec = self._make_job(item)
            images = torch.empty((len(spec), spec.size, spec.size, 3), dtype=torch.uint8)
            if self._shared:  # written in place: no copy on the way to the trainer
                images.share_memory_()  # type: ignore[no-untyped-call]
            for row, encoded in enumerate(self._store.read(spec.sample_ids)):
                image = decode_rgb(encoded, self._index, int(spec.sample_ids[row]))
                images[row] = _transform(image, spec, row, mode=self._mode)
        except UserError as error:
            return _Failure(str(error))
        if not self._augments or spec.operations is None:
            return _HostBatch(spec, images, is_augmented=False)
        if spec.crop_offsets is not None:
            images.copy_(offset_and_flip(images, spec.crop_offsets, spec.flips, is_flipped=False))
        pixel_ops.apply_each(images, spec.operations)
        return _HostBatch(spec, images, is_augmented=True)


def _transform(image: torch.Tensor, spec: BatchSpec, row: int, *, mode: str) -> torch.Tensor:
    """Window, antialiased resize, crop, flip: `[3, H, W]` to `[size, size, 3]` uint8."""
    top, left, height, width = spec.crop_boxes[row].tolist()
    resized_height, resized_width = spec.resized[row].tolist()
    image = image[:, top : top + height, left : left + width]
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


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(trainer_pid: int, _worker_id: int) -> None:
    workers.isolate(trainer_pid)


def _train_item(
    item: int, *, make_spec: Callable[..., BatchSpec], num_micro_batches: int
) -> BatchSpec:
    step, micro_batch = divmod(item, num_micro_batches)
    return make_spec(step=step, micro_batch=micro_batch)


def _eval_item(item: int, *, make_spec: Callable[..., BatchSpec]) -> BatchSpec:
    return make_spec(batch=item)


class _Reader:
    """Runs work items through reader processes and finishes them on the device."""

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        device: torch.device,
        num_workers: int,
        shards_ahead: int = 0,
    ) -> None:
        self._data = data
        self._shards_ahead = shards_ahead
        self._index = index
        self._device = device
        self._num_workers = num_workers
        self._stage = DeviceStage(data, device)

    def run(
        self, make_spec: Callable[[int], BatchSpec], items: range
    ) -> Generator[Batch, None, None]:
        """Batches of the items, in order. Closing the generator ends the readers."""
        with (
            contextlib.closing(self.read(make_spec, items)) as results,
            contextlib.closing(one_ahead(results, self._finish, self._device)) as batches,
        ):
            yield from batches

    def read(
        self, make_spec: Callable[[int], BatchSpec], items: range
    ) -> Generator[_HostBatch, None, None]:
        """What the readers make of the items, in order. Closing the generator ends them.

        Raises UserError, naming the file, for one that is damaged, changed or gone.
        """
        results = iter(self._build(make_spec, items))
        try:
            for result in results:
                if isinstance(result, _Failure):
                    raise UserError(result.message)
                yield result
        finally:
            if self._num_workers:
                results._shutdown_workers()  # type: ignore[attr-defined]  # now, not when a traceback lets go of it

    def _build(
        self, make_spec: Callable[[int], BatchSpec], items: range
    ) -> DataLoader[_HostBatch | _Failure]:
        dataset = _MicroBatches(
            make_spec,
            self._index,
            open_store(self._index, self._data, shards_ahead=self._shards_ahead),
            mode=self._data.interpolation,
            shared=self._num_workers > 0,
            augments=self._device.type == "cpu",  # readers are many; a GPU does it faster
        )
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=items,
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            prefetch_factor=self._data.prefetch_batches if self._num_workers else None,
            worker_init_fn=partial(_start_worker, os.getpid()),
            multiprocessing_context=workers.context() if self._num_workers else None,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else each iterator draws from the global state
        )

    def _finish(self, result: _HostBatch) -> Batch:
        is_flipped = result.spec.crop_offsets is None
        return self._stage(
            result.images, result.spec, is_flipped=is_flipped, is_augmented=result.is_augmented
        )

    def check_shared_memory(self, micro_batch_size: int, size: int) -> None:
        """Raise UserError if the batches in flight do not fit into /dev/shm: a bus error would
        end the readers later. All ranks of the node share it; their number is not known here."""
        batches = self._num_workers * self._data.prefetch_batches + 1
        needed = batches * micro_batch_size * size * size * 3 if self._num_workers else 0
        status = os.statvfs("/dev/shm")
        free = status.f_bavail * status.f_frsize
        if needed > free:
            raise UserError(
                f"data.num_workers ({self._num_workers}): the batches in flight need "
                f"{needed >> 20} MiB of /dev/shm, which has {free >> 20} MiB free; enlarge it "
                f"(docker run --shm-size), or lower data.num_workers or data.prefetch_batches"
            )


class TorchTrainLoader:
    """Micro-batches of one rank for training, from any step on."""

    name = "torch"

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        batch_split: BatchSplit,
        seed: int,
        rank: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self.steps_per_epoch = order.steps_per_epoch(len(index), batch_split.global_batch_size)
        self._batch_split = batch_split
        self._reader = _Reader(
            data,
            index,
            device=device,
            num_workers=num_workers,
            shards_ahead=shards_ahead(data),
        )
        self._reader.check_shared_memory(order.largest_spec(data, batch_split), data.train_size)
        self._train_job = partial(
            order.train_spec, data, index, batch_split=batch_split, seed=seed, rank=rank
        )

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of steps [start_step, stop_step), in order.

        Raises UserError, naming the file, for one that is damaged, changed or gone.
        """
        num_micro_batches = self._batch_split.accumulation_steps
        make_spec = partial(
            _train_item, make_spec=self._train_job, num_micro_batches=num_micro_batches
        )
        return self._reader.run(
            make_spec, range(start_step * num_micro_batches, stop_step * num_micro_batches)
        )


class TorchEvalLoader:
    """This rank's share of the evaluation batches."""

    name = "torch"

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self.num_batches = order.num_eval_batches(len(index), batch_size)
        self._items = range(rank, self.num_batches, world_size)
        self._reader = _Reader(data, index, device=device, num_workers=num_workers)
        self._reader.check_shared_memory(min(batch_size, len(index)), data.eval_size)
        self._eval_job = partial(order.eval_spec, data, index, batch_size=batch_size)

    def batches(self) -> Generator[Batch, None, None]:
        """Batches rank, rank + world_size, ...; every sample is in one batch of one rank."""
        return self._reader.run(partial(_eval_item, make_spec=self._eval_job), self._items)


def decode_all(
    data: DataConfig, index: Index, *, side: int, num_workers: int
) -> Generator[tuple[int, torch.Tensor], None, None]:
    """Every image of an index whose images are all `side` x `side`, in order: the first sample of a
    part, and its `[n, side, side, 3]` uint8 on the host.

    Raises UserError, naming the file, for one that is damaged, changed or gone.
    """
    data = replace(data, eval_size=side, eval_resize_size=side)  # a crop of all of it
    reader = _Reader(data, index, device=torch.device("cpu"), num_workers=num_workers)
    reader.check_shared_memory(min(_DECODED_TOGETHER, len(index)), side)
    make_spec = partial(order.eval_spec, data, index, batch_size=_DECODED_TOGETHER)
    items = range(order.num_eval_batches(len(index), _DECODED_TOGETHER))
    with contextlib.closing(reader.read(partial(_eval_item, make_spec=make_spec), items)) as parts:
        for done in parts:
            yield int(done.spec.sample_ids[0]), done.images
