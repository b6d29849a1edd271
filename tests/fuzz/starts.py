"""Many short starts of the trainer, each judged: no traceback, no hang, a code that is told."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from resnet_dist.run.checkpoint_files import newest_step
from tests.launch import Ended, Ranks

SECONDS = float(os.environ.get("RESNET_DIST_TEST_FUZZ_S", "20"))
"""How long each test of this folder goes on."""
SEED = int(os.environ.get("PYTEST_RANDOM", time.time_ns() % 10**6))
LONGEST_S = 60.0
"""A start that takes longer hangs."""


class Tally:
    """Counts how the cases ended, and stops when the time is over."""

    def __init__(self, name: str) -> None:
        self.random = random.Random(SEED)
        self.counts: Counter[str] = Counter()
        self._name = name
        self._end = time.monotonic() + SECONDS

    def numbers(self) -> Iterator[int]:
        """0, 1, ... while there is time; then prints the counts."""
        number = 0
        while time.monotonic() < self._end:
            yield number
            number += 1
        ended = ", ".join(f"{count} {how}" for how, count in sorted(self.counts.items()))
        print(f"\n{self._name}, seed {SEED}: {number} cases: {ended}", flush=True)


def start(arguments: list[str], log: Path) -> Ended:
    """One rank with these arguments. Fails if it hangs."""
    log.unlink(missing_ok=True)
    ranks = Ranks(1, arguments, {}, log)
    deadline = time.monotonic() + LONGEST_S
    while ranks.is_running():
        assert time.monotonic() < deadline, f"hangs: {arguments}\n{log.read_text()[-3000:]}"
        time.sleep(0.02)
    return Ended(ranks.codes(), log.read_text())


def judge(ended: Ended, what: str) -> str:
    """`runs` or `is rejected`. Fails on a traceback, or an exit code that says nothing."""
    assert "Traceback" not in ended.output, f"{what}\n{ended.output[-4000:]}"
    (code,) = ended.codes
    assert code in (0, 2), f"{what}: code {code}\n{ended.output[-3000:]}"
    if code == 2:
        assert "error:" in ended.output, f"{what}: no error message\n{ended.output}"
        return "is rejected"
    return "runs"


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The model of the newest checkpoint."""
    path = run_dir / "checkpoints" / f"step_{newest_step(run_dir):08d}.pt"
    return dict(torch.load(path, weights_only=True)["model"])
