"""Which steps are looked at operator by operator: section `profile`."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.config.setting import check_section, setting


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace of a few steps by torch.profiler; the others are not slowed."""

    steps: tuple[int, int] | None = setting(None, ge=0, hint="for example [100, 110]", free=True)
    """Trace from the first of these steps up to the second, which is not traced. Written to
    `profile/` in the run folder: a trace for Perfetto or TensorBoard, a table of what the time
    went into, and on GPUs a snapshot of the memory. null: none."""
    ranks: tuple[int, ...] = setting((0,), ge=0, hint="[0]", free=True)
    """Ranks that are traced."""

    def __post_init__(self) -> None:
        rules = check_section(self, "profile")
        rules.require(
            self.steps is None or self.steps[0] < self.steps[1],
            "profile.steps",
            self.steps,
            "must rise",
            "for example [100, 110]",
        )
        rules.enforce()
