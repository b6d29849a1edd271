"""The report of a stalled rank, and what the reports of all ranks say about the culprit."""

from __future__ import annotations

import faulthandler
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from resnet_dist.faults.hosts import describe_ranks


class Position(NamedTuple):
    """How far a rank has come. All ranks come through the same positions in the same order."""

    step: int
    """Completed steps."""
    num_batches: int
    """Training batches asked for since the start: a step may take several."""
    phase: int
    """The phase's place in the order of phases."""


@dataclass(frozen=True)
class Report:
    """The place where one rank stalled."""

    rank: int
    host: str
    pid: int
    start: str
    """Which start of the run: the folder may hold files of earlier ones."""
    position: Position
    phase: str
    waited_s: float
    """Seconds since the last sign of progress."""
    where: str
    """What the main thread was doing."""

    def describe(self) -> str:
        """The report in one sentence."""
        return (
            f"rank {self.rank} (host {self.host}, process {self.pid}) has got no further for "
            f"{self.waited_s:.0f} s after step {self.position.step} ({self.phase})"
        )

    def write(self, path: Path) -> None:
        """Write the report for programs, the one for people, and the stacks of all threads.

        Under its name when it is whole: the others read it at any time.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w") as file:
            self._write(file)
        temporary.replace(path)

    def _write(self, file: TextIO) -> None:
        file.write(f"{json.dumps(asdict(self))}\n\n{self.describe()}\nat {self.where}\n\n")
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)


def read_reports(folder: Path, start: str) -> list[Report]:
    """What the ranks of this start have written, by rank. Skips what is no report."""
    reports = []
    for path in folder.glob("*_rank*.txt"):
        try:
            with path.open() as file:
                values = json.loads(file.readline())
            report = Report(**{**values, "position": Position(*values["position"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if report.start == start:
            reports.append(report)
    return sorted(reports, key=lambda report: report.rank)


def describe_culprit(reports: Sequence[Report], hosts: tuple[str, ...]) -> str:
    """Which ranks hold up the others, as text.

    First those that wrote nothing; else those that are behind; else, where all have come equally
    far, those whose main thread is elsewhere than that of most.
    """
    if len(hosts) == 1:
        return f"it was at {reports[0].where}"
    silent = sorted(set(range(len(hosts))) - {report.rank for report in reports})
    if silent:
        return (
            f"held up by {describe_ranks(silent, hosts)}: no report from there, so stopped, dead, "
            f"cut off, or still at work while all others wait"
        )
    behind = min(report.position for report in reports)
    last = [report for report in reports if report.position == behind]
    if len(last) < len(reports):
        return _held_up_by(last, hosts)
    places = Counter(report.where for report in reports).most_common(2)
    if len(places) > 1 and places[0][1] > places[1][1]:
        return _held_up_by([report for report in reports if report.where != places[0][0]], hosts)
    return f"all ranks have come equally far ({last[0].phase}): compare their stacks"


def _held_up_by(reports: Sequence[Report], hosts: tuple[str, ...]) -> str:
    first = reports[0]
    ranks = describe_ranks([report.rank for report in reports], hosts)
    return (
        f"held up by {ranks}, which got only as far as after step {first.position.step} "
        f"({first.phase}), at {first.where}"
    )
