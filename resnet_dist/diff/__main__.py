"""Where do two runs part, and why?

    resnet-dist diff runs/a runs/b

Compares the records that do not depend on the clock, bit for bit, then the checkpoints of the steps
that both folders have; says at which step and in which tensor the runs first differ, by how
much, and what may be the cause: settings, data, samples, ranks, skipped steps, versions. Runs
that are equal are said to be in one line. Reads the folders alone.
Exit codes: 0 equal, 1 different, 2 bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_dist.diff.cause import causes
from resnet_dist.diff.parting import Checkpoints, Compared, compare
from resnet_dist.errors import UserError, report_error
from resnet_dist.report.facts import RunFacts, named_apart, read_run

_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="resnet_dist.diff",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folders of two runs")
    folders = parser.parse_args(argv).runs
    try:
        runs = read_run(folders[0]), read_run(folders[1])
        return _diff(runs)
    except UserError as error:
        return report_error(error, speaks=True)


def _diff(runs: tuple[RunFacts, RunFacts]) -> int:
    from resnet_dist.diff import checkpoints  # only now: importing torch takes seconds

    records = compare(runs[0].records, runs[1].records)
    saved = checkpoints.compare(runs[0].folder, runs[1].folder)
    if records.steps == 0 and not saved.equal and saved.first_step is None:
        raise UserError("RUN: the two have no step in common, neither recorded nor saved")
    names = named_apart(runs)
    if records.parting is None and saved.first_step is None:
        last = max(records.equal_until, *saved.equal, 0)
        print(
            f"equal up to step {last}: {records.steps} recorded steps and {len(saved.equal)} "
            f"checkpoint(s), bit for bit"
        )
        return 0
    lines = [f"{names[0]} and {names[1]} differ", *_record_lines(records)]
    lines += _checkpoint_lines(saved)
    steps = [each for each in (saved.first_step, records.parting and records.parting.step) if each]
    may_round = records.parting.may_be_rounding if records.parting else saved.may_be_rounding
    found = causes(runs, min(steps), saved.facts, may_be_rounding=may_round)
    lines.append(f"likely cause: {found[0].what}")
    lines += [f"  {text}" for text in found[0].details[:_SHOWN]]
    for other in found[1:]:
        lines.append(f"also different: {other.what}")
        lines += [f"  {text}" for text in other.details[:_SHOWN]]
    print("\n".join(lines))
    return 1


def _record_lines(records: Compared) -> list[str]:
    parting = records.parting
    if parting is None:
        return [f"records: equal at {records.steps} steps, up to {records.equal_until}"]
    lines = [
        f"records: equal up to step {records.equal_until}, different at step {parting.step}",
        f"  {parting.tag}: {parting.first!r} and {parting.second!r}",
        f"  {parting.size}",
    ]
    if records.intervals_differ:
        lines.append("  (recorded at other steps, so that means of intervals are left out)")
    return lines


def _checkpoint_lines(saved: Checkpoints) -> list[str]:
    equal = f"equal at {', '.join(map(str, saved.equal))}" if saved.equal else ""
    if saved.first_step is None:
        return [f"checkpoints: {equal or 'no step in common'}"]
    first = saved.differences[0]
    size = "not comparable" if math.isinf(first.largest) else f"by {first.largest:.3g} at most"
    words = [*([equal] if equal else []), f"different at {saved.first_step}"]
    return [
        f"checkpoints: {'; '.join(words)}",
        f"  {first.where}: {size} (the first of {len(saved.differences)} tensors or values)",
    ]


if __name__ == "__main__":
    sys.exit(main())
