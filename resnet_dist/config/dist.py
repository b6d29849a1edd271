"""The process group, and what is watched while it runs: sections `dist` and `faults`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting

_LONGEST_S = 1e7
"""Four months: what waits longer waits for ever, and torch counts milliseconds."""


@dataclass(frozen=True, kw_only=True)
class DistConfig:
    """The process group and DDP."""

    device: Literal["auto", "cuda", "cpu"] = setting("auto", free=True)
    """auto: a GPU for each rank where there are any; cuda: refuse to train on CPUs."""
    timeout_s: float = setting(
        600.0, gt=0, lt=_LONGEST_S, hint="leave it out for the default", free=True
    )
    """A collective that takes longer ends the run (so that it can be restarted), seconds."""
    bucket_cap_mb: float = setting(25.0, gt=0, hint="leave it out for the default", free=True)
    """Size of DDP's gradient buckets, MiB."""
    gradient_dtype: Literal["float32", "bfloat16"] = setting("float32")
    """Type in which gradients travel between ranks. bfloat16 halves the traffic, and rounds each
    rank's share and every partial sum of them to 8 bits: not the same mathematics."""
    static_graph: bool = setting(False, free=True)
    """Tell DDP that every step uses the same parameters in the same way (they do): it then need not
    look. The all-reduce of the first step of a process is not overlapped."""
    world_size: int | None = setting(
        None, ge=1, hint="leave it out to take what torchrun started", free=True
    )
    """Number of ranks to insist on. null: whatever torchrun started."""
    flight_recorder_entries: int = setting(2000, ge=0, hint="0 turns it off", free=True)
    """Collectives that NCCL keeps in mind and writes to `flight_recorder/` in the run folder when
    one times out, about 1 KB each. 0: none."""

    def __post_init__(self) -> None:
        check_section(self, "dist").enforce()


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What is watched while the run goes on, and when it gives up."""

    max_skipped_steps: int = setting(
        20, ge=1, hint="20 lets float16's loss scale settle", free=True
    )
    """Consecutive steps whose loss or gradients may be not finite. They are skipped (no update);
    after as many the run goes back to its last good checkpoint once, and then stops with a
    diagnosis."""
    watchdog_s: float | None = setting(
        1200.0, gt=0, lt=_LONGEST_S, hint="null turns it off", free=True
    )
    """A rank that makes no progress for this long writes down its stacks and ends, so that it can
    be restarted, seconds. More than dist.timeout_s, so that an error comes first. null: no
    watchdog."""
    replica_check_every_steps: int | None = setting(500, ge=1, hint="null turns it off", free=True)
    """Steps between comparisons of all ranks' weights; also before the checkpoint of an epoch.
    null: never."""
    straggler_factor: float = setting(1.5, gt=1, hint="1.5 is the default", free=True)
    """A rank is named as slow when it takes this many times the median rank's time."""

    def __post_init__(self) -> None:
        check_section(self, "faults").enforce()
