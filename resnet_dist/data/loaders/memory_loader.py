"""The loader that decodes a split once and holds it on the device, for small images of one size.

Owns the decoded images, `[N, side, side, 3]` uint8, and gathers batches from them; the last stage
is the one of all loaders, so that batches are those of `data.loader=torch` on the same device, bit
for bit. Resizes nothing. Does not choose samples or augmentations: see `resnet_dist.data.order`.

On a GPU the batches of several steps are made at once: at 100,000 images/s copies of parameters and
launches of small kernels would take longer than the arithmetic. The host waits for nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import torch

from resnet_dist.config import DataConfig
from resnet_dist.data import order
from resnet_dist.data.augment.device_stage import DeviceStage, augment_uint8, one_ahead
from resnet_dist.data.batch import Batch, BatchSpec
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.joining import join, part
from resnet_dist.data.loaders.torch_loader import decode_all
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read.buffers import to_device
from resnet_dist.errors import UserError

_AHEAD_BYTES = 64 << 20
"""Of normalised images in float32 that are made at once on a GPU; twice that is alive."""
_MOST_AHEAD = 64
"""Batches made at once: the host makes their specs (0.1 ms each) while the GPU's queue drains."""


def decoded_bytes(index: Index) -> int:
    """What the images of a split take, each as large as the first."""
    return len(index) * int(index.heights[0]) * int(index.widths[0]) * 3


def batches_at_once(device: torch.device, *, batch_size: int, size: int) -> int:
    """How many batches are made in one go: 1 on the CPU, where nothing is gained by more."""
    if device.type == "cpu":
        return 1
    return min(max(_AHEAD_BYTES // (batch_size * size * size * 3 * 4), 1), _MOST_AHEAD)


class _Memory:
    """A split's images on the device, and batches of them."""

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        side_setting: str,
        device: torch.device,
        num_workers: int,
    ) -> None:
        """Decodes everything; returns when it is there. Raises UserError if the images are not
        squares of the side that `data` has under that name, do not fit, or one is damaged."""
        _check_sizes(data, index, side_setting)
        _check_room(data, index, device)
        side = int(index.heights[0])
        self._device = device
        self._stage = DeviceStage(data, device)
        self._images = torch.empty(len(index), side, side, 3, dtype=torch.uint8, device=device)
        decoded = decode_all(data, index, side=side, num_workers=num_workers)
        with contextlib.closing(decoded):
            for start, images in decoded:
                self._images[start : start + len(images)].copy_(images)
        if device.type == "cuda":  # batches are made on another stream
            torch.cuda.synchronize(device)

    def run(
        self, make_spec: Callable[[int], BatchSpec], items: range, *, at_once: int
    ) -> Generator[Batch, None, None]:
        """Batches of the items, in order; so many are made in one go."""
        waiting: deque[list[BatchSpec]] = deque()

        def finish(group: range) -> Batch:
            specs = [make_spec(item) for item in group]
            waiting.append(specs)
            return self._finish(join(specs))

        groups: Iterator[range] = (
            items[start : start + at_once] for start in range(0, len(items), at_once)
        )
        with contextlib.closing(one_ahead(groups, finish, self._device)) as joined:
            for batch in joined:
                yield from part(batch, waiting.popleft())

    def _finish(self, spec: BatchSpec) -> Batch:
        images = self._images.index_select(0, to_device(spec.sample_ids, self._device))
        top, left = spec.crops[0].tolist()  # the same for all: they are of one size
        images = images[:, top : top + spec.size, left : left + spec.size]
        if spec.operations is None or self._device.type != "cpu":
            return self._stage(images, spec, is_flipped=False)
        with _one_thread():
            images = augment_uint8(images, spec, is_flipped=False)
        return self._stage(images, spec, is_flipped=True, is_augmented=True)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in the torch loader's readers: where threads share the sum of an image (contrast), its
    last bit may be another from 257 pixels a side on (sums of 2**24 and more)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_sizes(data: DataConfig, index: Index, setting: str) -> None:
    """Raise UserError unless the images are squares of the size that a setting asks for."""
    low = min(int(index.heights.min()), int(index.widths.min()))
    high = max(int(index.heights.max()), int(index.widths.max()))
    if low != high:
        raise UserError(
            f"data.loader (memory): needs images that are squares of one size, and those of "
            f"{index.folder} have sides of {low} to {high} pixels; set data.loader=auto"
        )
    side = getattr(data, setting)
    if side != low:
        raise UserError(
            f"data.{setting} ({side}): needs a resize, which data.loader=memory does not do: the "
            f"images of {index.folder} have sides of {low} pixels; set data.{setting}={low}, or "
            f"data.loader=auto"
        )


def _check_room(data: DataConfig, index: Index, device: torch.device) -> None:
    """Raise UserError unless the decoded images fit into the limit and the device."""
    needed = decoded_bytes(index)
    if needed > data.memory_limit_gib * 2**30:
        raise UserError(
            f"data.memory_limit_gib ({data.memory_limit_gib}): the images of {index.folder} take "
            f"{needed / 2**30:.2f} GiB of each rank's memory; raise it, or set data.loader=auto"
        )
    free = _free_bytes(device)
    if needed > free:
        raise UserError(
            f"data.loader (memory): the images of {index.folder} take {needed / 2**30:.2f} GiB, "
            f"and {device} has {free / 2**30:.2f} GiB free; set data.loader=auto"
        )


def _free_bytes(device: torch.device) -> int:
    """Memory that can still be had; of the CPU's, all ranks of the node see the same."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(available) << 10


class MemoryTrainLoader:
    """Micro-batches of one rank for training, from any step on."""

    name = "memory"

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
        """Decodes the split: seconds. Raises UserError if the images are not squares of
        `data.train_size`, do not fit, or one is damaged."""
        self.steps_per_epoch = order.steps_per_epoch(len(index), batch_split.global_batch_size)
        self._batch_split = batch_split
        self._memory = _Memory(
            data, index, side_setting="train_size", device=device, num_workers=num_workers
        )
        self._at_once = batches_at_once(
            device, batch_size=order.largest_spec(data, batch_split), size=data.train_size
        )
        self._train_job = partial(
            order.train_spec, data, index, batch_split=batch_split, seed=seed, rank=rank
        )

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of steps [start_step, stop_step), in order."""
        num_micro_batches = self._batch_split.accumulation_steps
        items = range(start_step * num_micro_batches, stop_step * num_micro_batches)
        return self._memory.run(self._job_of_item, items, at_once=self._at_once)

    def _job_of_item(self, item: int) -> BatchSpec:
        step, micro_batch = divmod(item, self._batch_split.accumulation_steps)
        return self._train_job(step=step, micro_batch=micro_batch)


class MemoryEvalLoader:
    """This rank's share of the evaluation batches."""

    name = "memory"

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
        """As `MemoryTrainLoader`, of `data.eval_resize_size`; a centre crop is no resize."""
        self.num_batches = order.num_eval_batches(len(index), batch_size)
        self._items = range(rank, self.num_batches, world_size)
        self._memory = _Memory(
            data, index, side_setting="eval_resize_size", device=device, num_workers=num_workers
        )
        self._at_once = batches_at_once(
            device, batch_size=min(batch_size, len(index)), size=data.eval_size
        )
        self._eval_job = partial(order.eval_spec, data, index, batch_size=batch_size)

    def batches(self) -> Generator[Batch, None, None]:
        """Batches rank, rank + world_size, ...; every sample is in one batch of one rank."""
        return self._memory.run(
            lambda item: self._eval_job(batch=item), self._items, at_once=self._at_once
        )
