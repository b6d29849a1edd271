"""The DALI pipeline: what its operators are, and what it is fed.

Promises that the pixels are those of decoding, resizing and cropping with torchvision, up to the
rounding of the resize. It has no reader, no random operator and no state worth saving: everything
comes from a spec. The only file that imports DALI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_dist.config import DaliConfig, DataConfig
from resnet_dist.data.batch import BatchSpec, Done
from resnet_dist.data.nvjpeg import load_nvjpeg
from resnet_dist.errors import UserError
from resnet_dist.run import dali_package

load_nvjpeg()  # before DALI does
try:
    import nvidia.dali as _dali
except ImportError as error:
    raise UserError(
        f"data.loader (dali): NVIDIA DALI cannot be imported ({error}); "
        f"{dali_package.how_to_install(dali_package.suited_to(None, torch.version.cuda))}, or set "
        f"data.loader=torch"
    ) from None

dali: Any = _dali  # its own type stubs lack what they generate at run time


@dataclass(frozen=True)
class Feed:
    """A spec with everything that the pipeline is given for it, one row a sample."""

    spec: BatchSpec
    encoded: list[NDArray[np.uint8]]
    starts: NDArray[np.int32]
    """`[n, 2]` top, left of the box to decode, pixels."""
    shapes: NDArray[np.int32]
    """`[n, 2]` its height, width."""
    roi_starts: NDArray[np.float32]
    """`[n, 2]` the part of the box that becomes the result, pixels with fractions."""
    roi_ends: NDArray[np.float32]
    sizes: NDArray[np.float32]
    """`[n, 2]` height, width of the result."""

    @property
    def inputs(self) -> tuple[Any, ...]:
        """In the order of the pipeline's external source."""
        return self.encoded, self.starts, self.shapes, self.roi_starts, self.roi_ends, self.sizes


def make_feed(spec: BatchSpec, encoded: list[NDArray[np.uint8]]) -> Feed:
    """Resizing only the part that the crop keeps gives the pixels of resizing and then cropping,
    for half the work of an evaluation; a part that runs backwards is mirrored at no cost."""
    scale = spec.crop_boxes[:, 2:] / spec.resized.astype(np.float64)
    roi_starts = (spec.crops * scale).astype(np.float32)
    roi_ends = ((spec.crops + spec.size) * scale).astype(np.float32)
    left, right = roi_starts[:, 1].copy(), roi_ends[:, 1].copy()
    roi_starts[:, 1] = np.where(spec.flips, right, left)
    roi_ends[:, 1] = np.where(spec.flips, left, right)
    return Feed(
        spec=spec,
        encoded=encoded,
        starts=np.ascontiguousarray(spec.crop_boxes[:, :2]),
        shapes=np.ascontiguousarray(spec.crop_boxes[:, 2:]),
        roi_starts=roi_starts,
        roi_ends=roi_ends,
        sizes=np.full((len(spec), 2), spec.size, dtype=np.float32),
    )


@dataclass(frozen=True)
class Graph:
    """What the operators of a pipeline are."""

    data: DataConfig
    dali: DaliConfig
    device: torch.device
    num_threads: int
    batch_size: int
    """Largest batch."""
    max_height: int
    """Height of the largest image, pixels."""
    max_width: int
    goes_to: Done
    """How much the operators do: FLIPPED, uint8, or NORMALISED, float32."""

    def build(self, source: Callable[[], tuple[Any, ...]], *, prefetch: int) -> Any:
        """A pipeline that yields `[n, size, size, 3]`, mirrored as the specs say."""
        is_gpu = self.device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            device_id=(self.device.index or 0) if is_gpu else None,
            prefetch_queue_depth=prefetch,
            set_affinity=is_gpu and self.dali.set_affinity,
        )
        with pipeline:
            encoded, starts, shapes, roi_starts, roi_ends, sizes = dali.fn.external_source(
                source=source,
                num_outputs=6,
                batch=True,
                ndim=1,
                dtype=[dali.types.UINT8] + [dali.types.INT32] * 2 + [dali.types.FLOAT] * 3,
                no_copy=not is_gpu,  # a GPU may still read when the batch is handed over
            )
            images = dali.fn.decoders.image_slice(
                encoded,
                start=starts,
                shape=shapes,
                axes=[0, 1],
                adjust_orientation=False,
                output_type=dali.types.RGB,
                **(self._gpu_decoder() if is_gpu else {}),
            )
            is_linear = self.data.interpolation == "bilinear"
            images = dali.fn.resize(
                images,
                size=sizes,
                roi_start=roi_starts,
                roi_end=roi_ends,
                antialias=True,
                interp_type=dali.types.INTERP_LINEAR if is_linear else dali.types.INTERP_CUBIC,
            )
            if self.goes_to is Done.NORMALISED:
                images = dali.fn.crop_mirror_normalize(
                    images,
                    mean=[255 * value for value in self.data.mean],
                    std=[255 * value for value in self.data.std],
                    dtype=dali.types.FLOAT,
                    output_layout="HWC",
                )
            pipeline.set_outputs(images)
        return pipeline

    def _gpu_decoder(self) -> dict[str, Any]:
        return {
            "device": "mixed",
            "hw_decoder_load": self.dali.hw_decoder_load,
            "preallocate_height_hint": min(self.max_height, self.dali.max_preallocated_side),
            "preallocate_width_hint": min(self.max_width, self.dali.max_preallocated_side),
            "jpeg_fancy_upsampling": self.dali.fancy_upsampling,
        }
