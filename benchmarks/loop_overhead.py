"""What does the loop cost? A step inside `fit` against the same step of a bare loop, in turn.

    python benchmarks/loop_overhead.py [--steps 400] [key=value ...]

One process, two equal models, the same batches of one loader: each batch is trained on inside
`fit` (with meters, JSONL, TensorBoard, console, schedule and signals as in any run) and by the ten
lines of `bare_step`, in alternating order. The time of a step of `fit` is from the moment it gets
a batch until it asks for the next one. Prints the medians and the total times, and their ratios.
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

from run_parts import build_run
from torch.nn.functional import cross_entropy

from resnet_dist.build import build_state
from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.data.batch import Batch
from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.loop import Components, fit
from resnet_dist.state import TrainState

WARM_UP = 20
"""Steps that are not counted."""


def bare_step(state: TrainState, use: Components, batch: Batch, smoothing: float) -> None:
    """The body of the bare loop."""
    for group in state.optimizer.param_groups:
        group["lr"] = use.lr_of(batch.step)
    logits = state.model(batch.images)
    loss = cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.optimizer.zero_grad()


class AlternatingLoader:
    """Gives each batch to `fit` and to the bare step, and takes the time of both."""

    def __init__(
        self, loader: TrainLoader, bare: TrainState, use: Components, *, smoothing: float
    ) -> None:
        self._loader = loader
        self._bare = bare
        self._use = use
        self._smoothing = smoothing
        self.seconds: dict[str, list[float]] = {"fit": [], "bare": []}

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        with closing(self._loader.batches(start_step, stop_step)) as batches:
            for batch in batches:
                if batch.step % 2:
                    self._take_bare(batch)
                start = time.perf_counter()
                yield batch
                self.seconds["fit"].append(time.perf_counter() - start)
                if not batch.step % 2:
                    self._take_bare(batch)

    def _take_bare(self, batch: Batch) -> None:
        start = time.perf_counter()
        bare_step(self._bare, self._use, batch, self._smoothing)
        self.seconds["bare"].append(time.perf_counter() - start)


def measure(config: Config, steps: int) -> dict[str, list[float]]:
    """Seconds of each counted step of both."""
    built = build_run(config)
    state, use = built.state, built.use
    bare = build_state(config, built.datasets, built.world)
    # Steps within an epoch cost no evaluation and no save; the save at the end is not timed.
    stop_step = steps + WARM_UP + 1
    cadence = dataclasses.replace(
        use.cadence, steps_per_epoch=10**9, num_steps=10**9, stop_step=stop_step
    )
    loader = AlternatingLoader(use.train_loader, bare, use, smoothing=config.loss.label_smoothing)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        built.watchdog,
        closing(use.recorder),
        closing(use.saver),
    ):
        fit(state, dataclasses.replace(use, train_loader=loader, cadence=cadence))
    return {name: values[WARM_UP : WARM_UP + steps] for name, values in loader.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run.dir={folder}", "train.epochs=1000", *arguments.overrides]
        seconds = measure(load_config([], overrides).config, arguments.steps)
    for name, values in seconds.items():
        quarters = statistics.quantiles(values, n=4)
        print(
            f"{name}: {1e3 * statistics.median(values):.2f} ms a step (median; quartiles "
            f"{1e3 * quarters[0]:.2f} and {1e3 * quarters[2]:.2f}), {sum(values):.2f} s in all"
        )
    ratio = statistics.median(seconds["fit"]) / statistics.median(seconds["bare"])
    pairs = [one / two for one, two in zip(seconds["fit"], seconds["bare"], strict=True)]
    total = sum(seconds["fit"]) / sum(seconds["bare"])
    print(
        f"fit / bare, {arguments.steps} steps: {ratio:.4f} of the medians, "
        f"{statistics.median(pairs):.4f} median of the pairs, {total:.4f} of the total times"
    )


if __name__ == "__main__":
    main()
