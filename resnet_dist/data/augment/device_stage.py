"""The last stage of every loader, on the training device: uint8 images to network input.

Owns what comes after the crop: reflected shift, flip, operations, normalisation, erasing and
mixing, so that loaders differ in nothing but how they decode and resize. Also owns the hand-over
to a GPU, one batch ahead of the consumer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_dist.config import DataConfig
from resnet_dist.data.augment import blending, pixel_ops
from resnet_dist.data.batch import Batch, BatchSpec
from resnet_dist.data.read.buffers import HostBuffers, to_device

_T = TypeVar("_T")


def augment_uint8(images: torch.Tensor, spec: BatchSpec, *, is_flipped: bool) -> torch.Tensor:
    """What a spec does to `[n, size, size, 3]` uint8 images before they are normalised, on their
    device. `is_flipped`: they are mirrored already as the spec says."""
    if spec.crop_offsets is not None:
        images = offset_and_flip(images, spec.crop_offsets, spec.flips, is_flipped=is_flipped)
    elif not is_flipped:
        flips = to_device(spec.flips, images.device)[:, None, None, None]
        images = torch.where(flips, images.flip(2), images)
    if spec.operations is None:
        return images
    if images.device.type != "cpu":
        return pixel_ops.apply_batched(images, spec.operations)
    images = images.clone()  # a loader may not want its memory changed
    pixel_ops.apply_each(images, spec.operations)
    return images


class DeviceStage:
    """Makes a `Batch` of decoded, resized and cropped images."""

    def __init__(self, data: DataConfig, device: torch.device) -> None:
        self._device = device
        self._dtype = getattr(torch, data.image_dtype)
        self._pads = data.pad_channels
        self._buffers = HostBuffers()
        self._mix_buffers = HostBuffers()
        mean = torch.tensor(data.mean, dtype=torch.float64)
        std = torch.tensor(data.std, dtype=torch.float64)
        self._scale = (1.0 / (255.0 * std)).to(device, torch.float32)
        self._bias = (-mean / std).to(device, torch.float32)

    def __call__(
        self, images: torch.Tensor, spec: BatchSpec, *, is_flipped: bool, is_augmented: bool = False
    ) -> Batch:
        """Finish `[n, size, size, 3]` uint8 images, which lie on the host (pinned, for a GPU) or on
        the device already. `is_flipped`: the loader has mirrored them as the spec says;
        `is_augmented`: it has done all that `augment_uint8` does.
        """
        images = images.to(self._device, non_blocking=True)
        if not is_augmented:
            images = augment_uint8(images, spec, is_flipped=is_flipped)
        return self.finish(self.normalise(images), spec)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(x / 255 - mean) / std: `[n, S, S, 3]` uint8 to `[n, 3, S, S]` float32 channels-last."""
        n, height, width, _ = images.shape
        # Whole rows as the inner dimension: a loop over three channels would not vectorise.
        if self._device.type == "cpu":
            rows = self._buffers.take(images.numel()).view(n * height, width * 3)
            rows.copy_(images.reshape(n * height, width * 3))
        else:
            rows = images.reshape(n * height, width * 3).to(torch.float32)
        torch.addcmul(self._bias.repeat(width), rows, self._scale.repeat(width), out=rows)
        return rows.view(n, height, width, 3).permute(0, 3, 1, 2)

    def shape(self, images: torch.Tensor) -> torch.Tensor:
        """The type and the channels that `data` asks for, from `[n, 3, S, S]` float32, in
        channels-last memory format; at most one copy."""
        if not self._pads:
            return images.to(self._dtype)
        n, _, height, width = images.shape
        padded = torch.zeros(n, height, width, 4, dtype=self._dtype, device=images.device)
        padded[..., :3] = images.permute(0, 2, 3, 1)
        return padded.permute(0, 3, 1, 2)

    def finish(self, images: torch.Tensor, spec: BatchSpec) -> Batch:
        """Erase, mix and label normalised images, `[n, 3, size, size]` float32 channels-last on the
        device. May write into them."""
        labels, mixed = spec.labels, None
        if spec.erased is not None:
            blending.erase_(images, spec.erased)
        if spec.mix is not None:
            images = blending.mix(images, spec.mix, self._mix_buffers)
            mixed = blending.mixed_labels(labels, spec.mix, self._device)
            labels = labels[spec.own]
        return Batch(
            step=spec.step,
            images=self.shape(images),
            labels=to_device(labels, self._device),
            sample_ids=spec.sample_ids[spec.own],
            mixed=mixed,
        )


def to_uint8(images: torch.Tensor, data: DataConfig) -> torch.Tensor:
    """Undo the normalisation, for people to look at: `[n, 3, S, S]` uint8 on the CPU."""
    images = images[:, :3]
    mean = torch.tensor(data.mean)[:, None, None]
    std = torch.tensor(data.std)[:, None, None]
    return ((images.cpu() * std + mean) * 255.0).round().clamp(0, 255).to(torch.uint8)


def offset_and_flip(
    images: torch.Tensor,
    crop_offsets: NDArray[np.int32],
    flips: NDArray[np.bool_],
    *,
    is_flipped: bool,
) -> torch.Tensor:
    """torchvision's RandomCrop(size, padding, padding_mode="reflect"), then the flip.

    `images` `[n, S, S, 3]` uint8; `crop_offsets` `[n, 2]` rows and columns in [-padding, padding].
    Reads through reflected coordinates, so no padded copy is made.
    """
    n, size = images.shape[:2]
    device = images.device
    offsets = torch.arange(size, device=device)
    mirrored = to_device(flips, device)[:, None]
    shift = to_device(crop_offsets, device).long()
    rows = _reflect(offsets + shift[:, :1], size)
    columns = torch.where(mirrored, size - 1 - offsets, offsets) + shift[:, 1:]
    columns = _reflect(columns, size)
    if is_flipped:  # the source is a mirror image already: read it from the other side
        columns = torch.where(mirrored, size - 1 - columns, columns)
    samples = torch.arange(n, device=device)[:, None, None]
    return images[samples, rows[:, :, None], columns[:, None, :]]


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def one_ahead(
    items: Iterable[_T], finish: Callable[[_T], Batch], device: torch.device
) -> Generator[Batch, None, None]:
    """Finish items in order; on a GPU, on a stream of their own while the last one is consumed."""
    if device.type != "cuda":
        for item in items:
            yield finish(item)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ready: tuple[Batch, torch.cuda.Event] | None = None
    for item in items:
        with torch.cuda.stream(stream):
            following = (finish(item), stream.record_event())
        if ready is not None:
            yield _claim(*ready)
        ready = following
    if ready is not None:
        yield _claim(*ready)


def _claim(batch: Batch, done: torch.cuda.Event) -> Batch:
    """Let the consumer's stream wait for a batch (the host does not) and own its memory."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(done)
    batch.images.record_stream(current)
    batch.labels.record_stream(current)
    if batch.mixed is not None:
        batch.mixed.partners.record_stream(current)
        batch.mixed.shares.record_stream(current)
    return batch
