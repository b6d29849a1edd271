"""Settings of DALI on GPUs, and of the form that batches have: a part of section `data`.

None of them changes what is computed, but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules, free


@dataclass(frozen=True, kw_only=True)
class DaliFields:
    """How DALI uses a GPU; of every loader: the type and the channels of images."""

    hw_decoder_load: float = free(0.65)
    """Share of the JPEGs for the GPU's decoding engine (A100, H100 and later), the rest is decoded
    by its multiprocessors; DALI's own default. Tune it by `python -m resnet_dist.bench`."""
    max_preallocated_side: int = free(8192)
    """Decoding buffers are made for the largest image at the start, but for none with longer sides
    than this, pixels: one huge image must not reserve the memory for a batch of them. 0: buffers
    grow as images come, which looks like a leak for epochs."""
    set_affinity: bool = free(True)
    """Bind DALI's threads to the processors next to their GPU (of those this process may use)."""
    image_dtype: Literal["float32", "float16", "bfloat16"] = free("float32")
    """Type of a batch's images, float32 or `train.precision`: autocast would round them to that
    anyway, so a smaller type only saves memory traffic."""
    pad_channels: bool = free(False)
    """Give images a fourth channel of zeros: 16-bit channels-last convolutions like groups of four.
    cuDNN pads by itself where it must, so measure first. Not for resnet9."""

    def check_dali(self, rules: Rules) -> None:
        """Add the rules of these fields."""
        rules.require(
            0 <= self.hw_decoder_load <= 1,
            "data.hw_decoder_load",
            self.hw_decoder_load,
            "must lie in [0, 1]",
            "0.65 is DALI's default",
        )
        rules.require(
            self.max_preallocated_side >= 0,
            "data.max_preallocated_side",
            self.max_preallocated_side,
            "must not be negative",
            "0 turns preallocation off",
        )
