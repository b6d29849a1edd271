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

from resnet_dist import build, train
from resnet_dist.data.batch import Batch
from resnet_dist.data.loaders.build import build_train_loader
from resnet_dist.data.loaders.loader import TrainLoader

VARIABLE = "RESNET_DIST_TEST_TRACE"


class TracedLoader:
    """A loader that notes what is taken from it."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader
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


def trace(folder: Path) -> list[dict[str, Any]]:
    """What the steps of all processes consumed, process by process in the order of their starts."""
    texts = [path.read_text().rpartition("\n")[0] for path in sorted(folder.glob("trace/*"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def samples_by_step(folder: Path) -> dict[int, list[int]]:
    """The samples of each step when it was done for the last time, over all ranks."""
    lines = sorted(trace(folder), key=lambda line: float(line["time"]))
    last_start = {line["step"]: line["start"] for line in lines}
    done: dict[int, list[dict[str, Any]]] = {step: [] for step in sorted(last_start)}
    for line in lines:
        if line["start"] == last_start[line["step"]]:
            done[line["step"]].append(line)
    for step, found in done.items():
        assert sorted(each["rank"] for each in found) == list(range(found[0]["world_size"])), step
    return {step: sorted(i for each in found for i in each["ids"]) for step, found in done.items()}


if __name__ == "__main__":
    build.build_train_loader = build_traced_loader
    sys.exit(train.main())
