"""Which kills there are, and a plan of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from resnet_dist.system.failpoints import KILL_NAMES, VARIABLE

ONCE_AN_EPOCH = ("checkpoint.before_best", "evaluate.mid")
"""Failpoints that are passed once per epoch."""


@dataclass(frozen=True)
class Fault:
    """One kill."""

    what: str
    """A failpoint, or `random moment`."""
    victim: str
    """`rank N`, `all ranks` or `agent`."""
    count: int = 1
    """Which pass of the failpoint kills."""
    delay: float = 0.0
    """Random moment: share of the time that a start takes to its tenth step."""

    @property
    def environment(self) -> dict[str, str]:
        """What arms the failpoint."""
        if self.what not in KILL_NAMES:
            return {}
        rank = f":{self.victim.removeprefix('rank ')}" if self.victim.startswith("rank ") else ""
        return {VARIABLE: f"{self.what}@{self.count}{rank}"}


def plan_faults(num_kills: int, *, nproc: int, seed: int) -> list[Fault]:
    """Each failpoint at least once (given enough kills), then random ones and random moments."""
    random_ = random.Random(seed)
    # What happens once per epoch comes first: later in a run it may never happen again.
    names = sorted(KILL_NAMES, key=lambda name: name not in ONCE_AN_EPOCH)
    faults = [_at_failpoint(name, nproc, random_, count=1) for name in names]
    while len(faults) < num_kills:
        if random_.random() < 0.4:
            victim = random_.choice([_some_rank(nproc, random_), "all ranks", "agent"])
            faults.append(Fault("random moment", victim, delay=random_.uniform(0.1, 1.2)))
        else:
            # A new best may never come again: waiting for it would use up the run.
            name = random_.choice([name for name in KILL_NAMES if name != ONCE_AN_EPOCH[0]])
            count = 1 if name in ONCE_AN_EPOCH else random_.choice([1, 1, 2, 3])
            faults.append(_at_failpoint(name, nproc, random_, count=count))
    return faults[: max(num_kills, 1)]


def _at_failpoint(name: str, nproc: int, random_: random.Random, *, count: int) -> Fault:
    if name.startswith("resume."):
        count = 1  # passed once per start
    if not name.startswith(("step.", "evaluate.", "resume.")):
        return Fault(name, random_.choice(["rank 0", "all ranks", "agent"]), count)
    return Fault(name, random_.choice([_some_rank(nproc, random_), "all ranks"]), count)


def _some_rank(nproc: int, random_: random.Random) -> str:
    return f"rank {random_.randrange(nproc)}"
