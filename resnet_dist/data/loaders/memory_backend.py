"""The backend that decodes a split once and holds it on the device, for small images of one size.

Owns the decoded images, `[N, side, side, 3]` uint8, and gathers batches from them; the last stage
is the one of all loaders, so that batches are those of `data.loader=torch` on the same device, bit
for bit. Resizes nothing. Does not choose samples or augmentations: see `resnet_dist.data.specs`.

On a GPU the batches of several steps are made at once: at 100,000 images/s copies of parameters and
launches of small kernels would take longer than the arithmetic. The host waits for nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import psutil
import torch

from resnet_dist.config import DataConfig
from resnet_dist.data.augment.device_stage import DeviceStage, augment_uint8
from resnet_dist.data.batch import Batch, BatchSlice, BatchSpec, Done
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.hand_over import one_ahead
from resnet_dist.data.loaders.joining import join, part
from resnet_dist.data.loaders.torch_backend import TorchBackend
from resnet_dist.data.order import eval_slice, num_eval_batches
from resnet_dist.data.read.buffers import to_device
from resnet_dist.data.specs import EvalSpecs, Specs
from resnet_dist.errors import UserError

_DECODED_TOGETHER = 256
"""Images of a part of `decode_all`."""
_AHEAD_BYTES = 64 << 20
"""Normalised images in float32 that are made at once on a GPU; twice that is alive."""
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


class MemoryBackend:
    """A split's images on the device, and batches of them."""

    def __init__(
        self, index: Index, specs: Specs, *, most: int, device: torch.device, num_workers: int
    ) -> None:
        """Decodes everything: seconds. Batches have `most` samples at most. Raises UserError if the
        images are not squares of `data.train_size` (of an evaluation: `data.eval_resize_size`; a
        centre crop is no resize), do not fit, or one is damaged."""
        _check_sizes(specs.data, index, specs.side_setting)
        _check_room(specs.data, index, device)
        side = int(index.heights[0])
        self._specs = specs
        self._device = device
        self._at_once = batches_at_once(device, batch_size=most, size=specs.largest_size)
        self._stage = DeviceStage(specs.data, device)
        self._images = torch.empty(len(index), side, side, 3, dtype=torch.uint8, device=device)
        decoded = decode_all(specs.data, index, side=side, num_workers=num_workers)
        with contextlib.closing(decoded):
            for start, images in decoded:
                self._images[start : start + len(images)].copy_(images)
        if device.type == "cuda":  # batches are made on another stream
            torch.cuda.synchronize(device)

    def batches(self, slices: Iterable[BatchSlice]) -> Generator[Batch, None, None]:
        """The batches of the slices, in their order."""
        waiting: deque[list[BatchSpec]] = deque()

        def finish(group: list[BatchSlice]) -> Batch:
            specs = [self._specs(one) for one in group]
            waiting.append(specs)
            return self._finish(join(specs))

        groups = _grouped(slices, self._at_once)
        with contextlib.closing(one_ahead(groups, finish, self._device)) as joined:
            for batch in joined:
                yield from part(batch, waiting.popleft())

    def _finish(self, spec: BatchSpec) -> Batch:
        images = self._images.index_select(0, to_device(spec.sample_ids, self._device))
        top, left = spec.crops[0].tolist()  # the same for all: they are of one size
        images = images[:, top : top + spec.size, left : left + spec.size]
        if spec.operations is None or self._device.type != "cpu":
            return self._stage(images, spec, Done.CROPPED)
        with _one_thread():
            images = augment_uint8(images, spec, Done.CROPPED)
        return self._stage(images, spec, Done.AUGMENTED)


def _grouped(slices: Iterable[BatchSlice], size: int) -> Iterator[list[BatchSlice]]:
    iterator = iter(slices)
    while group := list(islice(iterator, size)):
        yield group


def decode_all(
    data: DataConfig, index: Index, *, side: int, num_workers: int
) -> Generator[tuple[int, torch.Tensor], None, None]:
    """Every image of an index whose images are all `side` x `side`, in order: the first sample of a
    part, and its `[n, side, side, 3]` uint8 on the host.

    Raises UserError, naming the file, for one that is damaged, changed or gone.
    """
    specs = EvalSpecs(replace(data, eval_size=side, eval_resize_size=side), index)  # all of it
    together = min(_DECODED_TOGETHER, len(index))
    cpu = torch.device("cpu")
    reader = TorchBackend(index, specs, most=together, device=cpu, num_workers=num_workers)
    num_parts = num_eval_batches(len(index), together)
    slices = (eval_slice(len(index), together, number) for number in range(num_parts))
    with contextlib.closing(reader.read(slices)) as parts:
        for done in parts:
            yield int(done.spec.sample_ids[0]), done.images


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
    return int(psutil.virtual_memory().available)
