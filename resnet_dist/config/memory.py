"""Settings of the loader that holds decoded images in memory: a part of section `data`."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.config.setting import Rules, free


@dataclass(frozen=True, kw_only=True)
class MemoryFields:
    """None of them changes what is computed."""

    memory_limit_gib: float = free(16.0)
    """memory: most that the decoded images of one split may take on each rank's device, GiB: 3
    bytes a pixel (CIFAR-10: 0.14). On the CPU the ranks of a node take it each for itself."""

    def check_memory(
        self, rules: Rules, *, loader: str, crop: str, progressive_start_size: int | None
    ) -> None:
        """Add the rules of these fields: that loader resizes nothing."""
        rules.require(
            self.memory_limit_gib > 0,
            "data.memory_limit_gib",
            self.memory_limit_gib,
            "must be positive",
            "leave out data.loader=memory to hold nothing",
        )
        rules.require(
            loader != "memory" or crop == "pad_reflect",
            "data.crop",
            crop,
            "needs a resize, which data.loader=memory does not do",
            "set data.crop=pad_reflect, or data.loader=auto",
        )
        rules.require(
            loader != "memory" or progressive_start_size is None,
            "data.progressive_start_size",
            progressive_start_size,
            "needs a resize, which data.loader=memory does not do",
            "leave it out, or set data.loader=auto",
        )
