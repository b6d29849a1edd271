"""The training, run as a module by torchrun, with a note of every batch that a step consumed.

    python -m tests.faults.traced [key=value ...]

Each process appends JSON lines to a file of its own in the folder RESNET_DIST_TEST_TRACE.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from resnet_dist import parts, train
from resnet_dist.data.build import TrainLoader, build_train_loader
from resnet_dist.data.jobs import Batch

VARIABLE = "RESNET_DIST_TEST_TRACE"


class TracedLoader:
    """A loader that notes what is taken from it."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader
        self.name, self.steps_per_epoch = loader.name, loader.steps_per_epoch
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # A rendezvous gives rank 0's address with a new port: one name for one start of all ranks.
        start = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._facts = {"start": start, "rank": rank, "world_size": world_size}
        self._path = Path(os.environ[VARIABLE]) / f"{time.time_ns()}_{os.getpid()}.jsonl"

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The loader's, noted before they are used."""
        with self._path.open("a", buffering=1) as file:
            for batch in self._loader.batches(start_step, stop_step):
                ids = batch.sample_ids.tolist()
                line = {**self._facts, "step": batch.step, "ids": ids, "time": time.time()}
                file.write(json.dumps(line) + "\n")
                yield batch


def build_traced_loader(*arguments: Any, **named: Any) -> TracedLoader:
    """As `build_train_loader`."""
    return TracedLoader(build_train_loader(*arguments, **named))


if __name__ == "__main__":
    parts.build_train_loader = build_traced_loader
    sys.exit(train.main())
