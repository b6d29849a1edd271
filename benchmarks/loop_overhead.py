"""What does the loop cost? `fit` against a bare loop over the same loader, in turn.

    python benchmarks/loop_overhead.py [--rounds 9] [--steps 60] [key=value ...]

Both train the same model on the same batches in one process. `fit` logs to JSONL, TensorBoard and
the console, reads its meters, and looks for signals as in any run. Prints the seconds a step of
each round, the medians, and the median of the ratios of neighbouring rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

from torch.nn.functional import cross_entropy

from resnet_dist import dist
from resnet_dist.config_load import load_config
from resnet_dist.data.build import TrainLoader
from resnet_dist.data.jobs import Batch
from resnet_dist.inputs import sync_open_inputs
from resnet_dist.loop import Parts, fit
from resnet_dist.plan import plan_batches
from resnet_dist.resume import identity_of
from resnet_dist.state import TrainState
from resnet_dist.train import build_parts, build_state, configure_torch

WARM_UP = 5
"""Steps that are not counted: the loader's workers start."""


class TimedLoader:
    """Notes when each batch is asked for."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader
        self.name = loader.name
        self.steps_per_epoch = loader.steps_per_epoch
        self.times: list[float] = []

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        self.times = []
        with closing(self._loader.batches(start_step, stop_step)) as batches:
            for batch in batches:
                self.times.append(time.perf_counter())
                yield batch

    def seconds_a_step(self) -> float:
        counted = self.times[WARM_UP:]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def bare_loop(state: TrainState, parts: Parts, start: int, stop: int) -> None:
    """The ten lines."""
    model, optimizer = state.model.train(), state.optimizer
    with closing(parts.train_loader.batches(start, stop)) as batches:
        for step, batch in enumerate(batches, start):
            for group in optimizer.param_groups:
                group["lr"] = parts.lr_of(step)
            logits = model(batch.images)
            loss = cross_entropy(
                logits, batch.labels, label_smoothing=parts.settings.label_smoothing
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()


def measure(rounds: int, steps: int, overrides: list[str], folder: str) -> dict[str, list[float]]:
    resolved = load_config([], [f"run.dir={folder}", "train.epochs=1000", *overrides])
    config, world = resolved.config, dist.start(resolved.config.dist)
    configure_torch(config.train, world)
    inputs = sync_open_inputs(config, world)
    plan = plan_batches(config.train.global_batch_size, 1)
    state = build_state(config, inputs, world)
    identity = identity_of(config, inputs, plan)
    parts = build_parts(config, state, inputs, plan, world=world, identity=identity)
    loader = TimedLoader(parts.train_loader)
    parts.checkpoints.open()
    seconds: dict[str, list[float]] = {"fit": [], "bare": []}
    for number in range(rounds):
        start, stop = number * steps, (number + 1) * steps
        # Steps within an epoch cost no evaluation and no save; the save at the end is not timed.
        cadence: Any = dataclasses.replace(
            parts.cadence, steps_per_epoch=10**9, num_steps=10**9, stop_step=stop
        )
        timed = dataclasses.replace(parts, train_loader=loader, cadence=cadence)
        state.step = start
        with contextlib.redirect_stdout(io.StringIO()):
            fit(state, timed)
        seconds["fit"].append(loader.seconds_a_step())
        bare_loop(state, timed, start, stop)
        seconds["bare"].append(loader.seconds_a_step())
        print(f"round {number}: fit {seconds['fit'][-1]:.5f} s, bare {seconds['bare'][-1]:.5f} s")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(arguments.rounds, arguments.steps, arguments.overrides, folder)
    ratios = [fit_s / bare for fit_s, bare in zip(seconds["fit"], seconds["bare"], strict=True)]
    for name, values in seconds.items():
        low, high = min(values), max(values)
        print(f"{name}: median {statistics.median(values):.5f} s a step ({low:.5f} to {high:.5f})")
    print(
        f"fit / bare: median {statistics.median(ratios):.4f} "
        f"({min(ratios):.4f} to {max(ratios):.4f}), {len(ratios)} rounds of {arguments.steps} steps"
    )


if __name__ == "__main__":
    main()
