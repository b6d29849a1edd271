"""`python -m resnet_dist.selftest --dir FOLDER`: is a resumed run the run, on this file system?

Trains a small network on images that it draws, once uninterrupted, and then again while it is
killed with SIGKILL over and over: at every named failpoint, at random moments, one rank, all ranks,
or the agent. Each time it is started again. In the end weights, optimizer, moving average and every
record must be equal to those of the uninterrupted run, bit for bit. Prints a table and exits with 0
if they are, 1 if not.

Use a folder on the file system that your runs will use. Everything it writes is below
FOLDER/selftest, which is removed first, and again at the end if all is well.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from resnet_dist.data.quickstart.dataset import write_image
from resnet_dist.data.quickstart.render import CLASSES
from resnet_dist.errors import UserError
from resnet_dist.metrics.jsonl import read_records
from resnet_dist.system.failpoints import KILL_NAMES, LOG_VARIABLE, VARIABLE

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
"""10 steps an epoch; the log interval straddles the saves, so that a kill cuts it in two."""

STATE = ("step", "model", "optimizer", "scaler", "average", "meter", "guard", "losses", "best")
"""The parts of a checkpoint that are functions of (config, seed, step)."""
NOT_EXACT = ("images_per_second", "_ms", "_s", "data_wait_share", "memory_gib", "time")
"""Ends of the names of records that depend on the clock."""
LONGEST_START_S = 300.0
ONCE_AN_EPOCH = ("checkpoint.before_best", "evaluate.mid")


@dataclass(frozen=True)
class Fault:
    """One kill."""

    what: str
    """A failpoint, or `random moment`."""
    victim: str
    """`rank N`, `all ranks` or `agent`."""
    count: int = 1
    """The pass of the failpoint that kills."""
    delay: float = 0.0
    """Of a random moment: share of the time that a start takes to its tenth step."""

    @property
    def environment(self) -> dict[str, str]:
        """What arms the failpoint."""
        if self.what not in KILL_NAMES:
            return {}
        rank = f":{self.victim.removeprefix('rank ')}" if self.victim.startswith("rank ") else ""
        return {VARIABLE: f"{self.what}@{self.count}{rank}"}


class Started(Protocol):
    """A start of the training."""

    def ranks(self) -> dict[int, int]:
        """Process id of each rank that runs."""
        ...

    def kill_agent(self) -> None:
        """SIGKILL to the process that started the ranks."""
        ...

    def is_running(self) -> bool:
        """Whether the agent or any rank runs."""
        ...

    def finish(self) -> bool:
        """End what still runs; whether all had ended well."""
        ...


Launch = Callable[[list[str], dict[str, str], Path], Started]
"""(arguments of resnet_dist.train, environment, file for the output) to a start."""


class Torchrun:
    """A start under torchrun. Ranks of a killed agent end with it (see `resnet_dist.world`)."""

    def __init__(
        self, nproc: int, arguments: list[str], environment: dict[str, str], log: Path
    ) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={nproc}", "-m", "resnet_dist.train", *arguments]
        with log.open("a") as file:
            self._agent = subprocess.Popen(
                command, env=os.environ | environment, stdout=file, stderr=file
            )
        self._seen: set[int] = set()

    def ranks(self) -> dict[int, int]:
        """See `Started.ranks`."""
        found = {}
        for pid in _children(self._agent.pid):
            rank = _variables(pid).get("RANK")
            if rank is not None:
                found[int(rank)] = pid
        self._seen |= set(found.values())
        return found

    def kill_agent(self) -> None:
        """See `Started.kill_agent`."""
        self.ranks()
        self._agent.kill()

    def is_running(self) -> bool:
        """See `Started.is_running`."""
        return self._agent.poll() is None or any(map(_is_alive, self._seen))

    def finish(self) -> bool:
        """See `Started.finish`."""
        for pid in self._seen:
            _kill(pid)
        self._agent.kill()
        return self._agent.wait() == 0


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _variables(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kill(pid: int) -> None:
    if _is_alive(pid):
        os.kill(pid, signal.SIGKILL)


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
        self, folder: Path, launch: Launch, *, nproc: int, epochs: int, overrides: Sequence[str]
    ) -> None:
        self.folder = folder
        self._launch = launch
        self._nproc = nproc
        self._arguments = [
            *SETTINGS,
            f"data.root={folder / 'images'}",
            f"data.cache_dir={folder / 'cache'}",
            f"train.epochs={epochs}",
            *overrides,
        ]
        self._tenth_step_s = 10.0
        """How long an uninterrupted start takes to its tenth step."""

    def draw_images(self) -> None:
        """Make the data set."""
        root = self.folder / "images"
        for split, count in NUM_IMAGES.items():
            for name in CLASSES:
                (root / split / name).mkdir(parents=True)
            for index in range(count):
                write_image(root, split, index)

    def run_undisturbed(self) -> Path:
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
                    _kill(pid)
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
                _kill(pid)
        else:
            number = int(fault.victim.removeprefix("rank "))
            if number in ranks:
                _kill(ranks[number])

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


def plan_faults(num_kills: int, *, nproc: int, seed: int) -> list[Fault]:
    """Each failpoint at least once (given enough kills), then random ones and random moments."""
    random_ = random.Random(seed)
    # What happens once an epoch comes first: later in a run it may never happen again.
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
        count = 1  # passed once a start
    if not name.startswith(("step.", "evaluate.", "resume.")):
        return Fault(name, random_.choice(["rank 0", "all ranks", "agent"]), count)
    return Fault(name, random_.choice([_some_rank(nproc, random_), "all ranks"]), count)


def _some_rank(nproc: int, random_: random.Random) -> str:
    return f"rank {random_.randrange(nproc)}"


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint by name, 0 if there is none."""
    names = (run_dir / "checkpoints").glob("step_*.pt")
    return max((int(path.stem.removeprefix("step_")) for path in names), default=0)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs that should be equal bit for bit."""
    steps = newest_step(one), newest_step(other)
    if steps[0] != steps[1] or steps[0] == 0:
        return [f"{one} ended at step {steps[0]}, {other} at step {steps[1]}"]
    states = [
        torch.load(run / "checkpoints" / f"step_{steps[0]:08d}.pt", weights_only=True)
        for run in (one, other)
    ]
    found = [
        text for key in STATE for text in _tree_differences(states[0][key], states[1][key], key)
    ]
    records = [exact_records(run) for run in (one, other)]
    if records[0] != records[1]:
        lines = [line for line in records[1] if line not in records[0]]
        found.append(f"records differ: {lines[:3] or 'some are missing'}")
    return [f"{other}: {text}" for text in found]


def exact_records(run_dir: Path) -> list[dict[str, str]]:
    """The records without what depends on the clock. NaN is equal to itself here."""
    return [
        {
            key: repr(value)
            for key, value in record.items()
            if not key.endswith(NOT_EXACT) and not key.startswith(("stragglers/", "checkpoint/"))
        }
        for record in read_records(run_dir / "metrics.jsonl")
    ]


def _tree_differences(one: Any, other: Any, path: str) -> list[str]:
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} against {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: other keys"]
        return [t for key in one for t in _tree_differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} against {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [t for i, (a, b) in pairs for t in _tree_differences(a, b, f"{path}/{i}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{path}: tensors differ"]
    is_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return [] if one == other or is_nan else [f"{path}: {one!r} against {other!r}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="resnet_dist.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, required=True, help="a folder where runs will lie")
    parser.add_argument("--kills", type=int, default=30, help="how many times to kill it")
    parser.add_argument("--nproc", type=int, default=2, help="ranks")
    parser.add_argument("--epochs", type=int, default=6, help="of 10 steps, of one run")
    parser.add_argument("--seed", type=int, default=None, help="of the random faults")
    parser.add_argument("--keep", action="store_true", help="leave what it wrote")
    parser.add_argument("overrides", nargs="*", help="key=value, such as data.loader=dali")
    args = parser.parse_args(argv)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    folder = args.dir / "selftest"

    def launch(arguments: list[str], environment: dict[str, str], log: Path) -> Started:
        return Torchrun(args.nproc, arguments, environment, log)

    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        suite = Suite(
            folder, launch, nproc=args.nproc, epochs=args.epochs, overrides=args.overrides
        )
        print(f"{args.kills} kills, seed {seed}, in {folder}; uninterrupted run first", flush=True)
        problems = report(suite, plan_faults(args.kills, nproc=args.nproc, seed=seed))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if problems:
        print("\n".join(["NOT EQUAL:", *problems]))
        return 1
    if not args.keep:
        shutil.rmtree(folder)
    print("equal bit for bit: weights, optimizer, moving average, counts and records")
    return 0


def report(suite: Suite, faults: Sequence[Fault]) -> list[str]:
    """Run everything and print a line for each fault. Returns what differs."""
    suite.draw_images()
    suite.run_undisturbed()
    print(f"{'kill':>5}  {'where':<34}{'who':<11}{'pass':>4}{'steps before, after':>22}{'s':>7}")
    problems: list[str] = []
    number = 0
    for outcome in suite.run_killed(faults):
        if isinstance(outcome, Result):
            number += 1
            fault, steps = outcome.fault, f"{outcome.before:>4} -> {outcome.after:<4}"
            print(
                f"{number:>5}  {fault.what:<34}{fault.victim:<11}{fault.count:>4}{steps:>22}"
                f"{outcome.seconds:>7.1f}",
                flush=True,
            )
        else:
            problems += outcome
            print("       run finished: " + ("; ".join(outcome) or "equal bit for bit"), flush=True)
    return problems


if __name__ == "__main__":
    sys.exit(main())
