"""What a run folder says about a run: how far it came, where its time went, what it was set to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError
from resnet_dist.metrics import jsonl
from resnet_dist.metrics.jsonl import Record
from resnet_dist.run.outcome import Outcome
from resnet_dist.system.json_files import read_lines

ENDED = (Outcome.FINISHED, Outcome.REACHED)
"""Outcomes after which the last record is the result."""


@dataclass(frozen=True)
class RunFacts:
    """One run, read from its folder."""

    name: str
    folder: Path
    records: list[Record]
    starts: list[dict[str, Any]]
    ends: list[dict[str, Any]]
    config: Config | None
    """None: the folder holds the records alone."""

    @property
    def is_finished(self) -> bool:
        """Whether the last start finished; a copy of the records alone counts as finished."""
        if not self.ends:
            return not self.starts
        return self.ends[-1].get("outcome") in ENDED

    @property
    def outcome(self) -> str:
        """How the last start ended, in a word."""
        if not self.starts:
            return "unknown"
        at = _time_of(self.starts[-1])
        if self.ends and float(self.ends[-1].get("time", 0.0)) >= at:
            return str(self.ends[-1].get("outcome", "unknown"))
        return "running, or killed"

    @property
    def world_size(self) -> int | None:
        """Ranks of the last start."""
        return self.starts[-1].get("world_size") if self.starts else None

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, len(self.starts) - 1)

    def last(self, tag: str) -> float | None:
        """The latest value of a tag."""
        found = self._values(tag)
        return found[-1] if found else None

    def best(self, tag: str) -> float | None:
        """The largest value of a tag."""
        return max(self._values(tag), default=None)

    def median(self, tag: str) -> float | None:
        """The median of a tag."""
        found = self._values(tag)
        return statistics.median(found) if found else None

    def _values(self, tag: str) -> list[float]:
        found = (record.get(tag) for record in self.records)
        return [float(value) for value in found if isinstance(value, float | int)]

    @cached_property
    def times(self) -> Times:
        """Where the time went."""
        return _times(self.records, self.starts, self.ends)

    @property
    def images(self) -> int | None:
        """Images trained on in steps that count; None: not known."""
        if self.config is None:
            return None
        return int(self.records[-1]["step"]) * self.config.train.global_batch_size

    @property
    def energy_kwh(self) -> float | None:
        """What the counters of all ranks say; None: there are none."""
        found = self._values("train/energy_kj")
        return sum(found) / 3600.0 if found else None

    @cached_property
    def rank_hours(self) -> float:
        """Hours of each start, times its ranks."""
        begins = [_time_of(start) for start in self.starts]
        signs = _signs(self.records, self.ends)
        total = 0.0
        for number, (start, begin) in enumerate(zip(self.starts, begins, strict=True), start=1):
            end = begins[number] if number < len(begins) else float("inf")
            own = [sign for sign in signs if begin <= sign < end]
            total += (max(own, default=begin) - begin) * int(start.get("world_size", 1))
        return total / 3600.0

    @property
    def cost(self) -> float | None:
        """Price of its hours; None where no price is given."""
        price = None if self.config is None else self.config.log.price_per_hour
        return None if price is None else price * self.rank_hours

    @property
    def samples(self) -> int | None:
        """Training samples; None: not known."""
        return self.starts[-1].get("num_train_samples") if self.starts else None


@dataclass(frozen=True)
class Times:
    """Seconds of a run by what they were spent on."""

    total: float
    """From the first start to the last sign of life."""
    steps: float
    """In training steps that are in the records, waits for data left out."""
    data: float
    """Waiting for data in those steps."""
    stopped: float
    """Between the last kept record of a start and the next start: stopped, or steps that were
    lost."""

    @property
    def rest(self) -> float:
        """Evaluation, start-up, saves at the end."""
        return max(0.0, self.total - self.steps - self.data - self.stopped)

    @property
    def goodput(self) -> float:
        """Share of the total that was spent in steps that count."""
        return self.steps / self.total if self.total > 0 else 0.0


def read_run(folder: Path) -> RunFacts:
    """Read a run folder. Raises UserError if it holds no records."""
    path = folder / "metrics.jsonl"
    try:
        records = jsonl.read_records(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the folder of a run, such as "
            f"runs/quickstart"
        ) from error
    if not records:
        raise UserError(f"{path}: holds no record yet; try again later")
    return facts_of(folder, records)


def facts_of(folder: Path, records: list[Record]) -> RunFacts:
    """A run whose records were read."""
    config = folder / "config.yaml"
    return RunFacts(
        name=folder.resolve().name,
        folder=folder,
        records=records,
        starts=read_lines(folder / "starts.jsonl"),
        ends=read_lines(folder / "ends.jsonl"),
        config=load_config([str(config)]).config if config.is_file() else None,
    )


def named_apart(runs: Sequence[RunFacts]) -> list[str]:
    """A name for each run: its folder's, with what is above it where two are alike."""
    depth = 1
    while depth < 12:
        names = ["/".join(run.folder.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
        depth += 1
    return [f"{number}: {run.name}" for number, run in enumerate(runs, start=1)]


def _times(
    records: Sequence[Record], starts: Sequence[dict[str, Any]], ends: Sequence[dict[str, Any]]
) -> Times:
    trained = [record for record in records if "train/step_time_ms" in record]
    steps = data = 0.0
    for before, record in _pairs(trained):
        seconds = (record["step"] - before) * float(record["train/step_time_ms"]) / 1e3
        share = float(record.get("train/data_wait_share", 0.0))
        steps, data = steps + seconds * (1.0 - share), data + seconds * share
    signs = _signs(records, ends)
    begins = [_time_of(start) for start in starts]
    first = begins[0] if begins else min(signs, default=0.0)
    stopped = 0.0
    for begin in begins[1:]:
        earlier = [sign for sign in signs if sign < begin]
        stopped += begin - max(earlier, default=begin)
    return Times(max(signs, default=first) - first, steps, data, stopped)


def _signs(records: Sequence[Record], ends: Sequence[dict[str, Any]]) -> list[float]:
    """When the run was known to be alive, seconds since 1970."""
    return [float(each["time"]) for each in [*records, *ends] if "time" in each]


def _pairs(trained: Sequence[Record]) -> Iterator[tuple[int, Record]]:
    """Each record with the step of the one before it."""
    bounds = [0, *(int(record["step"]) for record in trained)]
    for (before, _), record in zip(pairwise(bounds), trained, strict=True):
        yield before, record


def _time_of(start: dict[str, Any]) -> float:
    try:
        return datetime.strptime(str(start.get("time")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return 0.0
