"""How DALI uses a GPU: section `dali`. None of it changes what is computed, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.config.setting import check_section, setting


@dataclass(frozen=True, kw_only=True)
class DaliConfig:
    """Settings of data.loader=dali on a GPU; on a CPU they have no effect."""

    hw_decoder_load: float = setting(0.65, ge=0, le=1, hint="0.65 is DALI's default", free=True)
    """Fraction of the JPEGs that the GPU's decoding engine decodes (A100, H100 and later), the rest
    is decoded by its multiprocessors. Tune it by `python -m resnet_dist.bench`."""
    max_preallocated_side: int = setting(2048, ge=0, hint="0 turns preallocation off", free=True)
    """Decoding buffers are made for the largest image at the start, but for none with longer sides
    than this, pixels: one huge image must not reserve the memory for a batch of them. 0: buffers
    grow as images come, which looks like a leak for epochs."""
    fancy_upsampling: bool = setting(True, free=True)
    """Interpolate the colours of JPEGs that store them at half the resolution, as libjpeg does, so
    that all loaders see the same pixels. false: repeat them, which is a little faster."""
    set_affinity: bool = setting(True, free=True)
    """Bind DALI's threads to the processors next to their GPU (of those this process may use)."""

    def __post_init__(self) -> None:
        check_section(self, "dali").enforce()
