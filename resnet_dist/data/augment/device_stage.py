"""The last stage of every loader, on the training device: uint8 images to network input.

Owns what comes after the crop: moving over reflected borders, flip, operations, normalisation,
erasing and mixing, so that loaders differ in nothing but how they decode and resize.
"""

from __future__ import annotations

import torch

from resnet_dist.config import DataConfig
from resnet_dist.data.augment import erasing, mixing, pixel_ops
from resnet_dist.data.augment.colout import keep_lines
from resnet_dist.data.augment.crop import apply_offsets_and_flips
from resnet_dist.data.batch import Batch, BatchSpec, Done
from resnet_dist.data.read.buffers import HostBuffers, to_device


def augment_uint8(images: torch.Tensor, spec: BatchSpec, done: Done) -> torch.Tensor:
    """What a spec does to `[n, size, size, 3]` uint8 images before they are normalised, on their
    device, beyond what is done already."""
    if done >= Done.AUGMENTED:
        return images
    is_flipped = done >= Done.FLIPPED
    if spec.crop_offsets is not None:
        images = apply_offsets_and_flips(
            images, spec.crop_offsets, spec.flips, is_flipped=is_flipped
        )
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
        self._buffers = HostBuffers()
        self._mix_buffers = HostBuffers()
        self._is_grey = data.grayscale
        channels = 1 if data.grayscale else 3
        mean = torch.tensor(data.mean[:channels], dtype=torch.float64)
        std = torch.tensor(data.std[:channels], dtype=torch.float64)
        self._scale = (1.0 / (255.0 * std)).to(device, torch.float32)
        self._bias = (-mean / std).to(device, torch.float32)

    def __call__(self, images: torch.Tensor, spec: BatchSpec, done: Done) -> Batch:
        """Do what is left: `[n, size, size, 3]` images, which lie on the host (pinned, for a GPU)
        or on the device already, to a batch. May write into images that are normalised."""
        images = images.to(self._device, non_blocking=True)
        if done >= Done.NORMALISED:
            return self._finish(images.permute(0, 3, 1, 2), spec)
        return self._finish(self.normalise(augment_uint8(images, spec, done)), spec)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(x / 255 - mean) / std: `[n, S, S, 3]` uint8 to `[n, 3, S, S]` float32 channels-last
        (grey: `[n, 1, S, S]`)."""
        images = to_grey(images) if self._is_grey else images
        n, height, width, channels = images.shape
        # Whole rows as the inner dimension: a loop over three channels would not vectorise.
        if self._device.type == "cpu":
            rows = self._buffers.take(images.numel()).view(n * height, width * channels)
            rows.copy_(images.reshape(n * height, width * channels))
        else:
            rows = images.reshape(n * height, width * channels).to(torch.float32)
        torch.addcmul(self._bias.repeat(width), rows, self._scale.repeat(width), out=rows)
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)

    def _finish(self, images: torch.Tensor, spec: BatchSpec) -> Batch:
        """Erase, mix and label normalised images, `[n, 3, size, size]` float32 channels-last."""
        labels, mixed = spec.labels, None
        if spec.erased is not None:
            erasing.apply_erasing_(images, spec.erased)
        if spec.mix is not None:
            images = mixing.apply_mix(images, spec.mix, self._mix_buffers)
            mixed = mixing.mixed_labels(labels, spec.mix, self._device)
            labels = labels[spec.own]
        if spec.lines is not None:
            images = keep_lines(images, spec.lines[spec.own])
        return Batch(
            step=spec.step,
            images=images,
            labels=to_device(labels, self._device),
            sample_ids=spec.sample_ids[spec.own],
            mixed=mixed,
            kept=None if spec.kept is None else to_device(spec.kept[spec.own], self._device),
        )


def to_grey(images: torch.Tensor) -> torch.Tensor:
    """`[n, S, S, 3]` to `[n, S, S, 1]` uint8, as Pillow's convert("L") (ITU-R 601-2) rounds."""
    red, green, blue = images.to(torch.int32).unbind(3)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey.to(torch.uint8)[..., None]


def to_uint8(images: torch.Tensor, data: DataConfig) -> torch.Tensor:
    """Undo the normalisation, for people to look at: `[n, 3, S, S]` uint8 on the CPU."""
    channels = 1 if data.grayscale else 3
    mean = torch.tensor(data.mean[:channels])[:, None, None]
    std = torch.tensor(data.std[:channels])[:, None, None]
    pixels = ((images.cpu() * std + mean) * 255.0).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)
