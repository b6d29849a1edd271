"""The process group, and what is watched while it runs: sections `dist` and `faults`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules, free


@dataclass(frozen=True, kw_only=True)
class DistConfig:
    """The process group."""

    device: Literal["auto", "cuda", "cpu"] = free("auto")
    """auto: a GPU for each rank where there are any; cuda: refuse to train on CPUs."""
    timeout_s: float = free(600.0)
    """A collective that takes longer ends the run (so that it can be restarted), seconds."""
    bucket_cap_mb: float = free(25.0)
    """Size of DDP's gradient buckets, MiB."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients travel between ranks. bfloat16 halves the traffic, and rounds each
    rank's share and every partial sum of them to 8 bits: not the same mathematics."""
    static_graph: bool = free(False)
    """Tell DDP that every step uses the same parameters in the same way (they do): it then need not
    look. The all-reduce of the first step of a process is not overlapped."""
    world_size: int | None = free(None)
    """Number of ranks to insist on. None: whatever torchrun started."""
    flight_recorder_entries: int = free(2000)
    """Collectives that NCCL keeps in mind and writes to `flight_recorder/` in the run folder when
    one times out, about 1 KB each. 0: none."""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("timeout_s", "bucket_cap_mb"):
            value = getattr(self, name)
            rules.require(
                value > 0, f"dist.{name}", value, "must be positive", "leave out the default"
            )
        rules.require(
            self.world_size is None or self.world_size >= 1,
            "dist.world_size",
            self.world_size,
            "must be at least 1",
            "leave it out to take what torchrun started",
        )
        rules.require(
            self.flight_recorder_entries >= 0,
            "dist.flight_recorder_entries",
            self.flight_recorder_entries,
            "must not be negative",
            "0 turns it off",
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What is watched while the run goes on, and when it gives up."""

    max_skipped_steps: int = free(20)
    """Steps in a row whose loss or gradients are not finite. They are skipped (no update); after
    as many the run goes back to its last good checkpoint once, and then stops with a diagnosis."""
    watchdog_s: float | None = free(1200.0)
    """A rank that gets no further for this long writes down its stacks and ends, so that it can be
    started again, seconds. More than dist.timeout_s, so that an error has the first word. null: no
    watchdog."""
    replica_check_every_steps: int | None = free(500)
    """Steps between comparisons of all ranks' weights; also before the checkpoint of an epoch.
    null: never."""
    straggler_factor: float = free(1.5)
    """A rank is named as slow when it takes this many times the median rank's time."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.max_skipped_steps >= 1,
            "faults.max_skipped_steps",
            self.max_skipped_steps,
            "must be at least 1",
            "20 lets float16's loss scale settle",
        )
        rules.require(
            self.watchdog_s is None or self.watchdog_s > 0,
            "faults.watchdog_s",
            self.watchdog_s,
            "must be positive",
            "null turns it off",
        )
        rules.require(
            self.replica_check_every_steps is None or self.replica_check_every_steps >= 1,
            "faults.replica_check_every_steps",
            self.replica_check_every_steps,
            "must be at least 1",
            "null turns it off",
        )
        rules.require(
            self.straggler_factor > 1,
            "faults.straggler_factor",
            self.straggler_factor,
            "must exceed 1",
            "1.5 is the default",
        )
        rules.enforce()
