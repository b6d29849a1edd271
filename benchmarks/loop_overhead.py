"""What does the loop cost? A step inside `fit` against the same step of a bare loop, in turn.

    python benchmarks/loop_overhead.py [--steps 400] [--parts] [key=value ...]

One process, two equal models, the same batches of one loader: each batch is trained on inside
`fit` (with meters, JSONL, TensorBoard, console, schedule and signals as in any run) and by the ten
lines of `bare_step`, in alternating order. The time of a step of `fit` is from the moment it gets
a batch until it asks for the next one. Prints the medians and the total times, and their ratios.

With `--parts` it is measured again with one part of `fit` left out at a time, three times each in
turn: what is gone from the difference of fit and bare is the cost of that part.
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
from contextlib import closing, nullcontext
from unittest import mock

import torch
from run_parts import build_run
from torch import Tensor
from torch.nn.functional import cross_entropy

from resnet_dist import loop as loop_module
from resnet_dist import step as step_module
from resnet_dist.build import build_state
from resnet_dist.config import Config, LossConfig
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


def measure(config: Config, steps: int, *, without: str = "") -> dict[str, list[float]]:
    """Seconds of each counted step of both; `without`: one of `PARTS`."""
    built = build_run(config)
    state, use = built.state, built.use
    bare = build_state(config, built.datasets, built.world)
    # Steps within an epoch cost no evaluation and no save; the save at the end is not timed.
    stop_step = steps + WARM_UP + 1
    cadence = dataclasses.replace(
        use.cadence, steps_per_epoch=10**9, num_steps=10**9, stop_step=stop_step
    )
    loader = AlternatingLoader(use.train_loader, bare, use, smoothing=config.loss.label_smoothing)
    use = dataclasses.replace(use, train_loader=loader, cadence=cadence)
    _stub(use, state, without)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        built.watchdog,
        closing(use.recorder),
        closing(use.saver),
    ):
        fit(state, use)
    return {name: values[WARM_UP : WARM_UP + steps] for name, values in loader.seconds.items()}


def _stub(use: Components, state: TrainState, part: str) -> None:
    """Leave a part of `fit` out of these components."""
    zero = torch.zeros(())
    if part == "guard against non-finite steps":
        state.guard.begin = lambda: None  # type: ignore[method-assign]
        state.guard.check_loss = lambda loss: loss  # type: ignore[method-assign]
        state.guard.decide = lambda *_, **__: zero  # type: ignore[method-assign]
    elif part == "meters":
        state.meter.update = lambda *_: None  # type: ignore[method-assign]
        read = {"loss": 1.0, "top1": 0.0, "top5": 0.0, "samples": 1.0}
        state.meter.read_and_reset = lambda _: dict(read)  # type: ignore[method-assign]
        use.step.__dict__["on_logits"] = lambda *_: None
    elif part == "log steps":
        use.cadence.__dict__["log"] = dataclasses.replace(use.cadence.log, every_steps=10**9)
        use.cadence.__dict__["steps_per_epoch"] = 10**9
    elif part == "stop, watchdog, stragglers, saver":
        use.stop.sync_requested = lambda _: False  # type: ignore[method-assign]
        use.saver.poll = lambda: None  # type: ignore[method-assign]
        use.guards.watchdog.beat = lambda *_: None  # type: ignore[method-assign]
        use.guards.stragglers.begin_step = lambda: None  # type: ignore[method-assign]


def _plain_update(optimizer: torch.optim.Optimizer, *_: object) -> None:
    optimizer.step()
    optimizer.zero_grad()


def _plain_loss(logits: Tensor, labels: Tensor, _: object, loss: LossConfig) -> Tensor:
    return cross_entropy(logits, labels, label_smoothing=loss.label_smoothing, reduction="sum")


IN_MODULES: dict[str, tuple[object, str, object]] = {
    "norm of the gradient": (step_module, "_total_norm", lambda _: torch.zeros(())),
    "update that can be skipped": (step_module, "_update", _plain_update),
    "loss as a sum, in float32": (step_module, "loss_sum", _plain_loss),
    "clock and watch around the loader": (loop_module, "_watch", lambda batches, *_: batches),
}
"""Parts that are functions of a module: module, name, what stands in."""
PARTS = (
    *IN_MODULES,
    "guard against non-finite steps",
    "meters",
    "log steps",
    "stop, watchdog, stragglers, saver",
)


def measure_parts(overrides: list[str], steps: int) -> None:
    """Print what each part of `fit` costs, ms per step: medians of three measurements in turn."""
    costs: dict[str, list[float]] = {name: [] for name in ("all of it", *PARTS)}
    for _ in range(3):
        for name, values in costs.items():
            with tempfile.TemporaryDirectory() as folder:
                config = load_config([], [f"run.dir={folder}", *overrides]).config
                with mock.patch.object(*IN_MODULES[name]) if name in IN_MODULES else nullcontext():
                    seconds = measure(config, steps, without=name)
            fit_ms, bare_ms = (1e3 * statistics.median(seconds[kind]) for kind in ("fit", "bare"))
            values.append(fit_ms - bare_ms)
    whole = statistics.median(costs.pop("all of it"))
    print(f"fit - bare: {whole:.3f} ms per step; of that")
    for name, values in costs.items():
        print(f"  {whole - statistics.median(values):7.3f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--parts", action="store_true", help="measure the parts of the difference")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    if arguments.parts:
        measure_parts(["train.epochs=1000", *arguments.overrides], arguments.steps)
        return
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
