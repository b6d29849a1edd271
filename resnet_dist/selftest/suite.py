"""A small run, killed over and over until it is finished."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.data.quickstart.dataset import write_image
from resnet_dist.data.quickstart.render import CLASSES
from resnet_dist.errors import UserError
from resnet_dist.run.checkpoint_files import newest_step
from resnet_dist.selftest.comparison import differences
from resnet_dist.selftest.faults import Fault
from resnet_dist.selftest.starts import Launch, Started, kill
from resnet_dist.system.failpoints import LOG_VARIABLE

NUM_IMAGES = {"train": 260, "val": 40}
SMALL_NETWORK = (
    "model.name=resnet18",
    "model.width=8",
    "model.stem=cifar",
    "data.train_size=24",
    "data.eval_size=24",
    "data.eval_resize_size=28",
)
SETTINGS = (
    *SMALL_NETWORK,
    "data.num_workers=1",
    "train.precision=float32",
    "train.global_batch_size=26",
    "train.ema_decay=0.9",
    "performance.num_threads=1",
    "optim.lr=0.02",
    "schedule.warmup_epochs=0.5",
    "eval.batch_size=8",
    "log.every_steps=3",
    "checkpoint.every_steps=2",
    "dist.timeout_s=60",
)
"""10 steps per epoch; the log interval straddles the saves, so that a kill cuts it in two."""
LONGEST_START_S = 300.0


@dataclass
class Result:
    """What one fault did."""

    fault: Fault
    happened: bool
    before: int
    """Step of the newest checkpoint when it was started."""
    after: int
    """And when it was dead."""
    seconds: float


class Suite:
    """Kills a run until it is finished, as often as it takes for all faults."""

    def __init__(
        self, folder: Path, launch: Launch, *, epochs: int, overrides: Sequence[str]
    ) -> None:
        self.folder = folder
        self._launch = launch
        self._arguments = [
            *SETTINGS,
            f"data.root={folder / 'images'}",
            f"data.cache_dir={folder / 'cache'}",
            f"train.epochs={epochs}",
            *overrides,
        ]
        self._tenth_step_s = 10.0
        """How long an uninterrupted start takes to its tenth step."""

    def write_images(self) -> None:
        """Make the data set."""
        root = self.folder / "images"
        for split, count in NUM_IMAGES.items():
            for name in CLASSES:
                (root / split / name).mkdir(parents=True)
            for index in range(count):
                write_image(root, split, index)

    def run_uninterrupted(self) -> Path:
        """To the end, without a fault. Raises UserError if it does not get there."""
        run_dir = self.folder / "uninterrupted"
        start = time.monotonic()
        started = self._start(run_dir, {})
        while started.is_running() and time.monotonic() - start < LONGEST_START_S:
            if self._tenth_step_s == 10.0 and newest_step(run_dir) >= 10:
                self._tenth_step_s = time.monotonic() - start
            time.sleep(0.02)
        if not started.finish():
            raise UserError(
                f"--dir ({self.folder}): the uninterrupted run failed already; see "
                f"{self._log(run_dir)}"
            )
        return run_dir

    def run_killed(self, faults: Sequence[Fault]) -> Iterator[Result | list[str]]:
        """All faults, on one run after another, each to its end. Yields a result for each fault,
        and for each finished run what differs from the uninterrupted one: nothing, if all is well.
        """
        waiting, number = list(faults), 0
        while waiting:
            number += 1
            run_dir = self.folder / f"killed{number}"
            missed: list[Fault] = []
            is_finished = False
            while waiting and not is_finished:
                fault = waiting.pop(0)
                result, is_finished = self._strike(run_dir, fault)
                if result.happened:
                    yield result
                else:
                    missed.append(fault)
            if not is_finished and not self._finish(run_dir):
                yield [f"{run_dir}: could not be finished; see {self._log(run_dir)}"]
            yield differences(self.folder / "uninterrupted", run_dir)
            if missed and not waiting and number > len(faults):
                yield [f"never happened: {', '.join(fault.what for fault in missed)}"]
                return
            waiting = missed + waiting  # first in a new run, where nothing has happened yet

    def _strike(self, run_dir: Path, fault: Fault) -> tuple[Result, bool]:
        """Start the run and kill it. The second value: it got to its end instead."""
        evidence = self.folder / "faults.log"
        evidence.unlink(missing_ok=True)
        before, start = newest_step(run_dir), time.monotonic()
        started = self._start(run_dir, fault.environment | {LOG_VARIABLE: str(evidence)})
        if not fault.environment:
            self._kill_at_random(started, fault)
        while started.is_running() and time.monotonic() - start < LONGEST_START_S:
            if evidence.exists() and fault.victim == "all ranks":
                for pid in started.ranks().values():
                    kill(pid)
            if fault.victim == "agent" and evidence.exists():
                started.kill_agent()
            time.sleep(0.02)
        ended_well = started.finish()
        happened = evidence.exists() if fault.environment else not ended_well
        seconds = time.monotonic() - start
        return Result(fault, happened, before, newest_step(run_dir), seconds), ended_well

    def _kill_at_random(self, started: Started, fault: Fault) -> None:
        time.sleep(fault.delay * self._tenth_step_s)
        ranks = started.ranks()
        if fault.victim == "agent":
            started.kill_agent()
        elif fault.victim == "all ranks":
            for pid in ranks.values():
                kill(pid)
        else:
            number = int(fault.victim.removeprefix("rank "))
            if number in ranks:
                kill(ranks[number])

    def _finish(self, run_dir: Path) -> bool:
        started, start = self._start(run_dir, {}), time.monotonic()
        while started.is_running() and time.monotonic() - start < LONGEST_START_S:
            time.sleep(0.02)
        return started.finish()

    def _start(self, run_dir: Path, environment: dict[str, str]) -> Started:
        arguments = [*self._arguments, f"run.dir={run_dir}"]
        return self._launch(arguments, environment, self._log(run_dir))

    def _log(self, run_dir: Path) -> Path:
        return run_dir.with_name(f"{run_dir.name}.log")
